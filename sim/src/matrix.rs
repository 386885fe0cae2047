//! One fault at one place: the scenarios of the fault matrix.
//!
//! A world of four hosts, with groups on the first three. The fault strikes one host when it leads, follows, joins, sleeps, saves a
//! snapshot, or while the members change. While it lasts the groups go on without that host, wherever a majority can; when it is
//! over all replicas come to the same state, members settle, and everything falls silent again. All checkers run after every step.
//!
//! What else there is in `docs/fault-matrix.md` is in [`table`].

pub mod table;

use crate::host::Placed;
use crate::operator::Operations;
use crate::rng::Rng;
use crate::swarm::Swarm;
use crate::{Trace, World};
use longboat_raft::{ConfigChange, GroupId, HostId, Member, StoreId, Time};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// The group that the place is about.
const GROUP: GroupId = GroupId(1);
/// The host without replicas, at first.
const FREE: HostId = HostId(4);

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed.
    Kill,
    /// Power is lost: the last record may be torn.
    TornTail,
    /// A byte of the journal changes while the process does not run.
    Rot,
    /// The directory is lost.
    Wiped,
    /// The directory is put back to an older copy.
    PutBack,
    /// A sync fails.
    FailedSync,
    /// The disk is full for three seconds.
    NoRoom,
    /// Syncs hang for a minute.
    Stall,
    /// The clock jumps on by a minute.
    ClockForward,
    /// The clock is set back by five seconds.
    ClockBack,
    /// The process is stopped for a minute.
    Suspended,
    /// Nothing passes between the host and others.
    CutOff,
    /// Nothing that the host sends arrives.
    Unheard,
    /// Nothing arrives at the host.
    Deaf,
    /// The host is cut off and heard again, over and over.
    Flapping,
    /// What the host sends passes at 50 KB a second.
    SlowLink,
    /// The host's connections break every tenth of a second.
    Resets,
}

/// Where it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host that leads.
    Leader,
    /// A host that follows.
    Follower,
    /// A host whose new replica is being added.
    Joining,
    /// A host whose groups are silent.
    Quiesced,
    /// A host that saves a snapshot.
    Snapshotting,
    /// The leader's host, while a member is being added.
    Change,
}

/// Lets `fault` strike at `place`. Panics if anything is not as it should be.
pub fn strike(fault: Fault, place: Place) {
    let seed = 1 + (7 * fault as u64 + place as u64) % 5;
    let mut world = world(seed);
    if fault == Fault::PutBack {
        // Everybody else sees more of each of them, and remembers.
        for host in (1..=3).map(HostId) {
            let now = world.now();
            assert!(world.copy_directory(host, now).is_some(), "it runs");
        }
        pass(&mut world, 12 * SECOND);
    }
    let target = prepare(&mut world, place, seed);
    let over = begin(&mut world, fault, target);
    world.busy = true;
    world.clients.expect_progress();
    let until = world.now().plus_nanos(15 * SECOND);
    flap(&mut world, fault, target, until);
    for (group, _) in world.around.swarm.groups.clone() {
        // Who has no room refuses commands, and goes on leading.
        let went_on = fault == Fault::NoRoom || world.clients.has_progressed(group);
        assert!(went_on, "group {group} is held up by {fault:?} at {place:?}, host {target}, seed {seed}");
    }
    world.run_until(over, |_| false);
    world.heal();
    world.converge();
    assert_eq!(world.around.oracle.violation(), None, "{fault:?} at {place:?}, host {target}, seed {seed}");
}

fn world(seed: u64) -> World {
    let mut rng = Rng::new(seed);
    let mut swarm = Swarm::quiet(&mut rng, 3);
    swarm.hosts = 4;
    swarm.ballast = 300_000;
    swarm.operations = Operations { every_nanos: 50 * MILLI, ..Operations::default() };
    let mut world = World::with(rng, swarm, Trace::default());
    pass(&mut world, 3 * SECOND);
    world
}

fn pass(world: &mut World, nanos: u64) {
    let until = world.now().plus_nanos(nanos);
    world.run_until(until, |_| false);
    assert_eq!(world.around.oracle.violation(), None);
}

/// The host whose replica of the group leads, once there is one, and one whose replica follows.
fn roles(world: &mut World) -> (HostId, HostId) {
    let leads = |w: &World| (1..=3).map(HostId).find(|host| w.leads(*host, GROUP));
    let by = world.now().plus_nanos(10 * SECOND);
    world.run_until(by, |w| leads(w).is_some());
    let leader = leads(world).expect("somebody leads");
    (leader, HostId(leader.0 % 3 + 1))
}

/// Brings the world to where the fault strikes; the host.
fn prepare(world: &mut World, place: Place, seed: u64) -> HostId {
    let (leader, follower) = roles(world);
    match place {
        Place::Leader => leader,
        Place::Follower => follower,
        Place::Joining | Place::Change => {
            add_member(world, leader);
            if place == Place::Joining { FREE } else { leader }
        }
        Place::Quiesced => {
            world.busy = false;
            let by = world.now().plus_nanos(20 * SECOND);
            assert!(world.run_until(by, |w| w.awake().is_none()), "the groups do not fall silent");
            if seed.is_multiple_of(2) { follower } else { leader }
        }
        Place::Snapshotting => {
            let shared = world.replica(follower, GROUP).expect("it runs");
            let deadline = world.now_at(follower).plus_nanos(10 * SECOND);
            world.clients.snapshot(follower, &shared, deadline);
            pass(world, 3 * MILLI);
            follower
        }
    }
}

/// A replica on the free host is being added to the group.
fn add_member(world: &mut World, leader: HostId) {
    let new = world.desk.next_replica();
    world.around.oracle.placed(FREE, GROUP, false);
    let free = &mut world.hosts[FREE.0 as usize - 1];
    free.replicas.insert(GROUP, Placed::joining(new, false));
    free.start_wanted(GROUP);
    let shared = world.replica(leader, GROUP).expect("it runs");
    let change = ConfigChange::add_voter(new, Member { host: FREE, store: StoreId::ZERO });
    let deadline = world.now_at(leader).plus_nanos(10 * SECOND);
    world.ask_change(leader, &shared, change, deadline);
    pass(world, MILLI);
}

/// Lets the fault strike; when it is over, at the latest.
fn begin(world: &mut World, fault: Fault, target: HostId) -> Time {
    let (now, at) = (world.now(), target.0 as usize - 1);
    let after = |seconds: u64| now.plus_nanos(seconds * SECOND);
    match fault {
        Fault::Kill => world.stop(target, false, 2 * SECOND),
        Fault::TornTail => world.stop(target, true, 2 * SECOND),
        Fault::Rot => assert!(world.rot(target, now).is_some(), "nothing rots"),
        Fault::Wiped => world.wipe(target),
        Fault::PutBack => {
            world.put_back(target);
            assert!(world.describe_loss().is_some(), "nobody knows more than the copy");
        }
        Fault::FailedSync => world.hosts[at].fail_sync(),
        Fault::NoRoom => {
            world.hosts[at].fill_disk(0);
            return after(3);
        }
        Fault::Stall => {
            world.hosts[at].disk.stall_until(after(60));
            return after(60);
        }
        Fault::ClockForward => world.hosts[at].clock.set(60 * SECOND as i64),
        Fault::ClockBack => world.hosts[at].clock.set(-5 * SECOND as i64),
        Fault::Suspended => {
            world.hosts[at].life.as_mut().expect("it runs").suspend(after(60));
            return after(60);
        }
        Fault::CutOff | Fault::Unheard | Fault::Deaf | Fault::Flapping => cut(world, fault, target, true),
        Fault::SlowLink => {
            let others = (1..=4).map(HostId).filter(|other| *other != target);
            others.for_each(|other| world.around.network.set_bandwidth(target, other, 50_000));
        }
        Fault::Resets => {}
    }
    after(15)
}

fn cut(world: &World, fault: Fault, target: HostId, cut: bool) {
    for other in (1..=4).map(HostId).filter(|other| *other != target) {
        if fault != Fault::Deaf {
            world.around.network.set_cut(target, other, cut);
        }
        if fault != Fault::Unheard {
            world.around.network.set_cut(other, target, cut);
        }
    }
}

/// Time passes; what comes and goes does so.
fn flap(world: &mut World, fault: Fault, target: HostId, until: Time) {
    let mut is_cut = true;
    while world.now() < until && !world.around.oracle.is_violated() {
        let step = world.now().plus_nanos(if fault == Fault::Flapping { 700 } else { 100 } * MILLI);
        world.run_until(step.min(until), |_| false);
        if fault == Fault::Flapping {
            is_cut = !is_cut;
            cut(world, fault, target, is_cut);
        }
        if fault == Fault::Resets {
            let others = (1..=4).map(HostId).filter(|other| *other != target);
            others.for_each(|other| world.around.network.reset(target, other));
        }
    }
    assert_eq!(world.around.oracle.violation(), None, "{fault:?} at host {target}");
}
