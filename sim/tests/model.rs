//! A small depth of every model configuration; and with the feature `plant`, that each catches its planted bugs. The whole
//! of it: `cargo run --release -p longboat-sim -- model --states N --json`.

use longboat_sim::model::{self, Limits};

/// Distinct states of each configuration that every test run walks through.
const STATES: usize = 300_000;

#[test]
fn no_rule_is_broken_in_a_small_depth_of_every_configuration() {
    // A panic is a broken rule, and reported as one.
    std::panic::set_hook(Box::new(|_| {}));
    let outcomes: Vec<_> =
        model::all().into_iter().map(|c| (c.name, model::explore(&c, Limits { states: STATES }))).collect();
    let _ = std::panic::take_hook();
    assert!(outcomes.len() >= 8);
    for (name, outcome) in outcomes {
        println!("{}", outcome.json(name));
        if let Some(found) = outcome.found {
            panic!("{name}: {}\n{}", found.what, found.trace.join("\n"));
        }
        assert!(outcome.states >= STATES, "{name} ends after {} states", outcome.states);
        assert!(outcome.states_far > 0, "{name} never has 3 terms, 3 proposals and 2 crashes");
    }
}

#[test]
fn two_searches_visit_the_same_states() {
    let config = model::named("remove-readd").expect("it is one of them");
    let [a, b] = [(); 2].map(|()| model::explore(&config, Limits { states: 20_000 }));
    let counts = |o: &model::Outcome| (o.states, o.transitions, o.depth, o.replica_states, o.packets, o.runs);
    assert_eq!(counts(&a), counts(&b));
}
