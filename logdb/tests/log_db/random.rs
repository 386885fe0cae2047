//! Stores against the model, over random steps with reopenings.

use crate::driver::Driver;
use crate::support::*;
use crate::workload::steps;
use longboat_logdb::KeyValue;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

fn agree(host: &mut dyn Host, steps: &[crate::workload::Step]) -> Result<(), TestCaseError> {
    let mut driver = Driver::new(host);
    driver.open().expect("a new store opens");
    for step in steps {
        driver.step(step).expect("nothing fails");
    }
    driver.drain().expect("nothing fails");
    driver.open().expect("it opens again");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_simulated_disk_holds_what_the_model_holds(steps in steps(1..300), seed in any::<u64>()) {
        agree(&mut SimHost::new(seed), &steps)?;
    }

    #[test]
    fn a_simulated_disk_with_archived_segments_holds_what_the_model_holds(steps in steps(1..500), seed in any::<u64>()) {
        agree(&mut SimHost::tiny(seed).keeping(), &steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn a_real_disk_with_rocksdb_holds_what_the_model_holds(steps in steps(100..300)) {
        agree(&mut RealHost::new(KeyValue::RocksDb), &steps)?;
    }

    #[test]
    fn a_real_disk_with_archived_segments_holds_what_the_model_holds(steps in steps(100..500)) {
        agree(&mut RealHost::new(KeyValue::RocksDb).keeping(), &steps)?;
    }

    #[test]
    fn a_real_disk_with_rows_in_memory_holds_what_the_model_holds(steps in steps(100..300)) {
        agree(&mut RealHost::new(KeyValue::Memory), &steps)?;
    }
}
