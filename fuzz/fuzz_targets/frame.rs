//! A frame from the wire: it is refused, or what it says can be said again and is understood alike. What a core makes of
//! the messages in it is at worst a violation.
#![no_main]

use bytes::Bytes;
use longboat_raft::{Core, CoreConfig, Member, Membership, ReplicaId, Restored, Time};
use longboat_transport::wire::{self, FrameBuilder, Incoming};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(incoming) = wire::messages(Bytes::copy_from_slice(data)).collect::<Result<Vec<Incoming>, _>>() else {
        return;
    };
    // A frame that says nothing is understood, and never built.
    if incoming.is_empty() {
        return;
    }
    let mut builder = FrameBuilder::new();
    for i in &incoming {
        builder.push(i.group, i.epoch, &i.message);
    }
    let again: Vec<u8> = builder.finish().iter().flat_map(|part| part.to_vec()).collect();
    let again: Vec<Incoming> =
        wire::messages(Bytes::from(again)).collect::<Result<_, _>>().expect("what was understood can be said again");
    assert_eq!(again, incoming);
    let config = CoreConfig { replica: ReplicaId(1), ..CoreConfig::default() };
    let voters = (1..4).map(|n| (ReplicaId(n), Member::default()));
    let restored = Restored { membership: Membership::from_voters(voters).into(), ..Restored::default() };
    let mut core = Core::new(config, restored, Time::ZERO).expect("an empty log is consistent");
    for i in incoming {
        if core.step(Time(1), i.message).is_err() {
            return;
        }
    }
});
