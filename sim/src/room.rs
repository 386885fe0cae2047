//! Scenarios of hosts whose disks fill up: what they refuse, that they refuse nothing else, and that it ends by itself.
//!
//! Each is a function that panics when what its name says does not hold. Must not know: how room is looked for.

use crate::machine::{Add, Ledger};
use crate::rng::Rng;
use crate::swarm::Swarm;
use crate::{Trace, World};
use longboat_raft::{GroupId, HostId, ProposeOptions, Role};
use longboat_rsm::RequestError;

const SECOND: u64 = 1_000_000_000;
const GROUPS: u64 = 6;

/// Planted bugs, each with the scenario that catches it.
pub const GUARDS: &[(&str, fn())] =
    &[("commands-fill-the-disk", a_host_whose_disk_is_nearly_full_refuses_commands_and_nothing_else)];

fn busy_world(seed: u64) -> World {
    let mut rng = Rng::new(seed);
    let mut swarm = Swarm::quiet(&mut rng, GROUPS);
    swarm.padding_max = 300;
    let mut world = World::with(rng, swarm, Trace::default());
    pass(&mut world, 3 * SECOND);
    world
}

fn pass(world: &mut World, nanos: u64) {
    let until = world.now().plus_nanos(nanos);
    world.run_until(until, |_| false);
    assert_eq!(world.around.oracle.violation(), None);
    assert!(world.hosts.iter().all(|host| host.life.is_some()), "a host failed");
}

fn fill(world: &mut World, host: HostId, percent: u64) {
    let left = world.around.swarm.disk_reserve_bytes() * percent / 100;
    world.hosts[host.0 as usize - 1].fill_disk(left);
}

fn leads(world: &World, host: HostId, group: GroupId) -> bool {
    let core = world.hosts[host.0 as usize - 1].life.as_ref().and_then(|life| life.core(group));
    core.is_some_and(|core| core.role() == Role::Leader)
}

/// What a host says to a command for a group.
fn command(world: &World, host: HostId, group: GroupId) -> Result<(), RequestError> {
    let shared = world.replica(host, group).expect("it runs");
    let deadline = world.now().plus_nanos(SECOND);
    let commands = std::iter::empty::<Add>();
    shared.enqueue::<Ledger>(commands, ProposeOptions::default(), deadline).map(drop)
}

/// A host with little room refuses commands, its own and forwarded ones; it takes other leaders' entries, answers reads, and does
/// not fail; with room again it takes commands again.
pub fn a_host_whose_disk_is_nearly_full_refuses_commands_and_nothing_else() {
    for seed in 1..=3 {
        let (mut world, tight) = (busy_world(seed), HostId(seed));
        let groups: Vec<GroupId> = (1..=GROUPS).map(GroupId).collect();
        fill(&mut world, tight, 80);
        pass(&mut world, SECOND);
        world.clients.expect_progress();
        let reads = world.clients.outcomes.reads;
        pass(&mut world, 5 * SECOND);
        for group in &groups {
            let refused = command(&world, tight, *group).expect_err("there is no room");
            assert!(matches!(refused, RequestError::DiskFull { .. }), "{refused}");
            let led_there = leads(&world, tight, *group);
            assert_eq!(world.clients.has_progressed(*group), !led_there, "group {group}, led there: {led_there}");
        }
        assert!(world.clients.outcomes.reads > reads || world.around.swarm.read_permille == 0, "reads are answered");
        world.hosts[tight.0 as usize - 1].make_room();
        pass(&mut world, SECOND);
        groups.iter().for_each(|group| assert_eq!(command(&world, tight, *group), Ok(())));
        end(world);
    }
}

/// A host with next to no room refuses other leaders' entries too; its groups go on without it, and it catches up.
pub fn a_follower_whose_disk_is_full_holds_nobody_up_and_catches_up() {
    for seed in 4..=6 {
        let (mut world, tight) = (busy_world(seed), HostId(seed - 3));
        fill(&mut world, tight, 40);
        pass(&mut world, SECOND);
        let applied = |world: &World, group: GroupId| {
            let life = world.hosts[tight.0 as usize - 1].life.as_ref();
            life.and_then(|l| l.core(group)).expect("it runs").last().index
        };
        let followed: Vec<GroupId> = (1..=GROUPS).map(GroupId).filter(|g| !leads(&world, tight, *g)).collect();
        assert!(!followed.is_empty(), "it leads everything");
        let before: Vec<_> = followed.iter().map(|group| applied(&world, *group)).collect();
        world.clients.expect_progress();
        pass(&mut world, 5 * SECOND);
        for (group, before) in followed.iter().zip(before) {
            assert!(world.clients.has_progressed(*group), "group {group} is held up");
            assert_eq!(applied(&world, *group), before, "group {group} takes entries without room");
        }
        world.hosts[tight.0 as usize - 1].make_room();
        end(world);
    }
}

fn end(mut world: World) {
    world.heal();
    world.converge();
    assert_eq!(world.around.oracle.violation(), None);
}
