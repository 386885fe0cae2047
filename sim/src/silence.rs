//! Scenarios of silent groups on whole hosts: what wakes them when a host dies, a replica stops, or a word is lost.
//!
//! Each is a function that panics when what its name says does not hold. They are in the library because both the tests and
//! `longboat-sim mutants` play them: chance rarely stops a replica of a silent group just when its word is lost.
//!
//! Must not know: how silence is agreed upon.

use crate::rng::Rng;
use crate::swarm::Swarm;
use crate::{Trace, World};
use longboat_raft::{Core, GroupId, HostId, Role};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;
const GROUPS: u64 = 12;

/// Planted bugs, each with the scenario that catches it.
pub const GUARDS: &[(&str, fn())] = &[
    ("gone-notice-dropped", followers_of_a_replica_that_stops_are_told_before_the_next_beat),
    ("beat-hash-ignored", a_lost_word_of_a_stopped_leader_is_found_by_the_beats),
    ("suspicion-missed-while-agreeing", followers_whose_disks_hang_while_their_leader_dies_elect_another),
];

fn pass(world: &mut World, nanos: u64) {
    let until = world.now().plus_nanos(nanos);
    world.run_until(until, |_| false);
    assert_eq!(world.around.oracle.violation(), None);
}

/// Runs until the condition holds.
fn until(world: &mut World, what: &str, nanos: u64, holds: impl Fn(&World) -> bool) {
    let by = world.now().plus_nanos(nanos);
    let held = world.run_until(by, |w| holds(w));
    assert_eq!(world.around.oracle.violation(), None);
    assert!(held, "not within {} ms: {what}", nanos / MILLI);
}

fn all_silent(world: &World) -> bool {
    world.hosts.iter().filter_map(|h| h.life.as_ref()).all(|life| life.awake().is_none())
}

/// A world in which every group has been used and has fallen silent.
fn silent_world(seed: u64) -> World {
    let mut rng = Rng::new(seed);
    let mut swarm = Swarm::quiet(&mut rng, GROUPS);
    swarm.step_workers = 1 + (seed % 2) as usize;
    let mut world = World::with(rng, swarm, Trace::default());
    pass(&mut world, 2 * SECOND);
    world.busy = false;
    until(&mut world, "all groups are silent", 10 * SECOND, all_silent);
    world
}

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=GROUPS).map(GroupId)
}

fn core(world: &World, host: HostId, group: GroupId) -> Option<&Core> {
    world.hosts[host.0 as usize - 1].life.as_ref()?.core(group)
}

fn role(world: &World, host: HostId, group: GroupId) -> Option<Role> {
    core(world, host, group).map(Core::role)
}

fn leader_of(world: &World, group: GroupId) -> Option<HostId> {
    (1..=3).map(HostId).find(|host| role(world, *host, group) == Some(Role::Leader))
}

fn silent_on(world: &World, host: HostId, group: GroupId) -> bool {
    let life = world.hosts[host.0 as usize - 1].life.as_ref();
    life.and_then(|l| l.core(group)).is_some_and(|core| core.is_quiet())
}

fn others(host: HostId) -> impl Iterator<Item = HostId> {
    (1..=3).map(HostId).filter(move |h| *h != host)
}

/// The first group that is led on `host`.
fn led_by(world: &World, host: HostId) -> Vec<GroupId> {
    groups().filter(|g| leader_of(world, *g) == Some(host)).collect()
}

/// A host that leads something, and what it leads.
fn some_leader(world: &World) -> (HostId, Vec<GroupId>) {
    let mut hosts = (1..=3).map(|h| (HostId(h), led_by(world, HostId(h))));
    hosts.find(|(_, led)| !led.is_empty() && led.len() < GROUPS as usize).expect("leaders are spread")
}

/// Every group takes a write, and all fall silent again with equal state.
fn works(world: &mut World) {
    world.heal();
    world.converge();
    assert_eq!(world.around.oracle.violation(), None);
    assert!(all_silent(world) || world.awake().is_some());
}

fn write(world: &mut World, group: GroupId, host: HostId) {
    let deadline = world.now().plus_nanos(2 * SECOND);
    let shared = world.replica(host, group).expect("it runs");
    world.clients.write(host, &shared, 8, deadline);
}

fn applied(world: &World, group: GroupId, host: HostId) -> u64 {
    world.replica(host, group).map_or(0, |r| r.published.applied.load(std::sync::atomic::Ordering::Relaxed))
}

/// A host dies; what it led has leaders as soon as it can be suspected and a campaign is over.
pub fn groups_of_a_dead_host_elect_within_two_election_timeouts() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (dead, led) = some_leader(&world);
        world.stop(dead, false, 30 * SECOND);
        let timeout = world.around.swarm.election_timeout_nanos;
        // Beats stop; a timeout and a beat later the host is suspected, then a timeout at most until a campaign that nobody
        // stands in the way of.
        let found = |w: &World| led.iter().all(|g| leader_of(w, *g).is_some());
        until(&mut world, "the dead host's groups have leaders", timeout * 5 / 2 + 50 * MILLI, found);
    }
}

/// A host dies whose followers have agreed to fall silent and wait for their disks: they are not left behind a dead leader.
pub fn followers_whose_disks_hang_while_their_leader_dies_elect_another() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (dead, led) = some_leader(&world);
        led.iter().for_each(|g| write(&mut world, *g, dead));
        until(&mut world, "written", 5 * SECOND, |w| w.clients.open() == 0);
        let asking = |w: &World| led.iter().any(|g| core(w, dead, *g).is_some_and(Core::is_falling_quiet));
        until(&mut world, "it asks", 5 * SECOND, asking);
        // Its followers agree, and their disks hang until after it was suspected.
        let timeout = world.around.swarm.election_timeout_nanos;
        let hang = world.now().plus_nanos(timeout * 4 / 3);
        others(dead).for_each(|h| world.hosts[h.0 as usize - 1].disk.stall_until(hang));
        pass(&mut world, 2 * MILLI);
        world.stop(dead, false, 30 * SECOND);
        let found = |w: &World| led.iter().all(|g| leader_of(w, *g).is_some());
        until(&mut world, "its groups have leaders", 10 * SECOND, found);
    }
}

/// A host that nobody hears for a moment too long: its groups are told to wake, and it is back before most had their turn.
pub fn a_host_that_is_back_before_its_groups_turn_came_goes_on_leading() {
    let mut rng = Rng::new(7);
    let mut swarm = Swarm::quiet(&mut rng, 900);
    swarm.step_workers = 1;
    let mut world = World::with(rng, swarm, Trace::default());
    pass(&mut world, 2 * SECOND);
    world.busy = false;
    until(&mut world, "all groups are silent", 20 * SECOND, all_silent);
    let led = |w: &World, host| (1..=900).map(GroupId).filter(|g| leader_of(w, *g) == Some(host)).collect::<Vec<_>>();
    let paused = HostId(1);
    let groups = led(&world, paused);
    assert!(groups.len() > 200, "{} groups", groups.len());
    others(paused).for_each(|other| world.around.network.set_cut(paused, other, true));
    let by = |w: &World, h: HostId| w.hosts[h.0 as usize - 1].life.as_ref().is_some_and(|l| l.suspects(paused));
    let suspects = |w: &World| others(paused).all(|h| by(w, h));
    until(&mut world, "it is suspected", 2 * SECOND, suspects);
    world.around.network.mend();
    // What it sends for one group shows that it lives.
    write(&mut world, groups[0], paused);
    pass(&mut world, 2 * SECOND);
    until(&mut world, "all are silent again", 20 * SECOND, all_silent);
    let kept = led(&world, paused).iter().filter(|g| groups.contains(g)).count();
    assert!(kept * 2 > groups.len(), "it leads {kept} of {} groups", groups.len());
}

/// A host dies; groups that others lead sleep on, and bring it up to date when it is back.
pub fn a_dead_host_wakes_the_groups_that_it_led_and_no_others() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (dead, led) = some_leader(&world);
        let sleeping: Vec<GroupId> = groups().filter(|g| !led.contains(g)).collect();
        world.stop(dead, false, 30 * SECOND);
        let by = world.now().plus_nanos(10 * SECOND);
        let woken = world.run_until(by, |w| sleeping.iter().any(|g| others(dead).any(|host| !silent_on(w, host, *g))));
        assert!(!woken, "a follower's death is no reason to wake");
        for group in &led {
            assert!(leader_of(&world, *group).is_some());
        }
        assert!(all_silent(&world), "one dead host does not keep groups awake");
        // What is written meanwhile reaches the host when it is back, and nobody has to ask for it.
        let other = others(dead).next().expect("two others");
        groups().for_each(|g| write(&mut world, g, other));
        until(&mut world, "written, and silent again", 10 * SECOND, |w| w.clients.open() == 0 && all_silent(w));
        until(&mut world, "the host is back", 30 * SECOND, |w| w.hosts.iter().all(|h| h.life.is_some()));
        let equal = |w: &World| groups().all(|g| applied(w, g, dead) == applied(w, g, other));
        until(&mut world, "the host has everything", 10 * SECOND, equal);
        until(&mut world, "all are silent again", 10 * SECOND, all_silent);
        works(&mut world);
    }
}

/// A leader's replica stops on a live host; its followers hear it at once.
pub fn followers_of_a_replica_that_stops_are_told_before_the_next_beat() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (host, led) = some_leader(&world);
        world.hosts[host.0 as usize - 1].stop_replica(led[0]);
        let beat = world.around.swarm.election_timeout_nanos / 4;
        let told = |w: &World| others(host).all(|h| !silent_on(w, h, led[0]));
        until(&mut world, "the followers are awake", beat / 2, told);
        until(&mut world, "another leads", 2 * SECOND, |w| leader_of(w, led[0]).is_some_and(|l| l != host));
    }
}

/// Stops a leader while nothing that its host says arrives.
fn stop_unheard(world: &mut World, host: HostId, group: GroupId) {
    others(host).for_each(|other| world.around.network.set_cut(host, other, true));
    world.hosts[host.0 as usize - 1].stop_replica(group);
    pass(world, 10 * MILLI);
    world.around.network.mend();
}

/// A leader's replica stops on a live host and nobody hears it; the beats' sums find it, and wake nothing else.
pub fn a_lost_word_of_a_stopped_leader_is_found_by_the_beats() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (host, led) = some_leader(&world);
        let sleeping: Vec<GroupId> = groups().filter(|g| *g != led[0]).collect();
        stop_unheard(&mut world, host, led[0]);
        assert!(others(host).all(|h| silent_on(&world, h, led[0])), "the word was lost");
        let found = |w: &World| leader_of(w, led[0]).is_some_and(|l| l != host);
        until(&mut world, "another leads", 2 * SECOND, found);
        let slept = |w: &World| sleeping.iter().all(|g| (1..=3).all(|h| silent_on(w, HostId(h), *g)));
        assert!(slept(&world), "only what differs is woken");
    }
}

/// A follower's replica stops; its group falls silent without it, and brings it up to date when it starts.
pub fn a_stopped_follower_does_not_keep_its_group_awake_and_is_missed_until_it_is_back() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (host, led) = some_leader(&world);
        let stopped = others(host).next().expect("two others");
        let group = led[0];
        stop_unheard(&mut world, stopped, group);
        until(&mut world, "the leader wakes", 2 * SECOND, |w| !silent_on(w, host, group));
        let rest = others(stopped).collect::<Vec<_>>();
        until(&mut world, "the others fall silent without it", 10 * SECOND, |w| {
            rest.iter().all(|h| silent_on(w, *h, group))
        });
        write(&mut world, group, host);
        until(&mut world, "written", 5 * SECOND, |w| w.clients.open() == 0);
        until(&mut world, "silent again", 10 * SECOND, |w| rest.iter().all(|h| silent_on(w, *h, group)));
        world.hosts[stopped.0 as usize - 1].start_replica(group);
        let equal = |w: &World| applied(w, group, stopped) == applied(w, group, host);
        until(&mut world, "it has everything", 5 * SECOND, equal);
        until(&mut world, "all are silent", 10 * SECOND, all_silent);
        works(&mut world);
    }
}

/// A host is cut off from a silent group that takes a write meanwhile.
pub fn a_host_that_was_cut_off_while_its_groups_slept_is_brought_up_to_date() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (host, led) = some_leader(&world);
        let cut = others(host).next().expect("two others");
        let group = led[0];
        // It hears everybody and is heard by nobody: it has no reason to wake by itself.
        others(cut).for_each(|other| world.around.network.set_cut(cut, other, true));
        let timeout = world.around.swarm.election_timeout_nanos;
        pass(&mut world, 2 * timeout);
        // The leader wakes and is written to; of that the cut one hears nothing.
        world.around.network.set_cut(host, cut, true);
        write(&mut world, group, host);
        let rest: Vec<HostId> = others(cut).collect();
        until(&mut world, "written", 5 * SECOND, |w| w.clients.open() == 0);
        until(&mut world, "silent without it", 10 * SECOND, |w| rest.iter().all(|h| silent_on(w, *h, group)));
        world.around.network.mend();
        let equal = |w: &World| applied(w, group, cut) == applied(w, group, host);
        until(&mut world, "it has everything", 5 * SECOND, equal);
        until(&mut world, "all are silent", 10 * SECOND, all_silent);
    }
}

/// A replica wakes while nobody hears it.
pub fn one_of_two_sides_wakes_from_quiesce_and_the_other_does_not() {
    for seed in 1..6 {
        let mut world = silent_world(seed);
        let (host, led) = some_leader(&world);
        let group = led[0];
        let follower = others(host).next().expect("two others");
        // Either side wakes for a write whose every message is lost for a while.
        let wakes = if seed % 2 == 0 { host } else { follower };
        others(wakes).for_each(|other| world.around.network.set_cut(wakes, other, true));
        write(&mut world, group, wakes);
        pass(&mut world, 60 * MILLI);
        world.around.network.mend();
        until(&mut world, "the write has ended", 5 * SECOND, |w| w.clients.open() == 0);
        until(&mut world, "all are silent", 10 * SECOND, all_silent);
        works(&mut world);
    }
}

/// All hosts lose power while all is silent.
pub fn silent_groups_survive_that_all_hosts_lose_power() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        (1..=3).for_each(|h| world.stop(HostId(h), true, (h + 1) * 100 * MILLI));
        pass(&mut world, SECOND);
        until(&mut world, "all are silent", 20 * SECOND, all_silent);
        assert!(groups().all(|g| leader_of(&world, g).is_some()));
        works(&mut world);
    }
}

/// A host restarts faster than anybody can miss it.
pub fn a_host_that_starts_anew_before_it_is_suspected_leaves_no_group_behind() {
    for seed in 1..4 {
        let mut world = silent_world(seed);
        let (host, led) = some_leader(&world);
        world.stop(host, false, 20 * MILLI);
        pass(&mut world, 100 * MILLI);
        let found = |w: &World| led.iter().all(|g| leader_of(w, *g).is_some());
        until(&mut world, "its groups have leaders", 2 * SECOND, found);
        until(&mut world, "all are silent", 20 * SECOND, all_silent);
        works(&mut world);
    }
}

/// Silent groups cost no frame beyond what their hosts send.
pub fn silent_groups_send_nothing_but_their_hosts_beats() {
    let mut world = silent_world(5);
    let timeout = world.around.swarm.election_timeout_nanos;
    let before = world.around.network.sent();
    pass(&mut world, 10 * SECOND);
    let frames = world.around.network.sent() - before;
    // Six ways between three hosts, a beat each every quarter of the election timeout.
    let beats = 6 * (10 * SECOND / (timeout / 4));
    assert!(frames <= beats + 6, "{frames} frames, {beats} beats");
    assert!(all_silent(&world));
}
