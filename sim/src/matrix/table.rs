//! The fault matrix as data: which fault, where it hits, what is required then, and the test that shows it.
//!
//! `docs/fault-matrix.md` is printed from this, and a test compares. Must not know: how any of it is tested.

use std::fmt::Write as _;
use std::path::Path;

/// Where a fault hits: the columns.
pub const PLACES: [&str; 6] =
    ["leader", "follower", "joining", "silent", "saving a snapshot", "during a membership change"];
/// How the names of the simulated scenarios end, in that order.
const ENDINGS: [&str; 6] =
    ["the_leader", "a_follower", "a_joining_replica", "a_silent_host", "a_saving_host", "the_leader_of_a_change"];
/// What is required of the group there, whatever hits the host.
const GROUPS: [&str; 6] = [
    "another replica leads and commits",
    "the others commit",
    "the members are as asked for in the end, and nobody is held up",
    "its groups wake for the next request, and fall silent again",
    "its snapshot is there whole, or not at all",
    "the change is made everywhere or nowhere",
];

/// A cell.
#[derive(Clone, Debug)]
pub enum Cell {
    /// What is required, and the name of the test.
    Test {
        /// What is required.
        what: String,
        /// The function.
        test: String,
    },
    /// Why it can't occur, or why it is no case of its own.
    No(String),
}

/// A row.
#[derive(Clone, Debug)]
pub struct Row {
    /// The fault.
    pub fault: &'static str,
    /// By place.
    pub cells: [Cell; 6],
}

/// A fault that strikes a simulated host: its scenarios' names begin alike.
fn struck(fault: &'static str, begins: &str, host: &str) -> Row {
    let cell = |at: usize| {
        let what = format!("The host {host}; {}.", GROUPS[at]);
        Cell::Test { what, test: format!("{begins}_at_{}", ENDINGS[at]) }
    };
    Row { fault, cells: std::array::from_fn(cell) }
}

/// What does not depend on what the host's replicas do.
fn anywhere(fault: &'static str, what: &str, test: &str) -> Row {
    let cell = |_| Cell::Test { what: what.to_owned(), test: test.to_owned() };
    Row { fault, cells: std::array::from_fn(cell) }
}

impl Row {
    fn cell(mut self, place: usize, cell: Cell) -> Self {
        self.cells[place] = cell;
        self
    }

    fn but(self, place: usize, what: &str, test: &str) -> Self {
        self.cell(place, Cell::Test { what: what.to_owned(), test: test.to_owned() })
    }

    fn not(self, place: usize, why: &str) -> Self {
        self.cell(place, Cell::No(why.to_owned()))
    }
}

const JOINING: usize = 2;
const SILENT: usize = 3;
const CHANGING: usize = 5;
const NOTHING_FORGOTTEN: &str =
    "No case of its own: before it is a member it has said nothing that counts, after that it is a follower.";

/// All rows.
pub fn rows() -> Vec<Row> {
    let mut rows = of_the_store();
    rows.extend(of_snapshots());
    rows.extend(of_time_and_machine());
    rows.extend(of_the_network());
    rows.extend(of_users());
    rows
}

fn of_the_store() -> Vec<Row> {
    let full = "The host refuses commands and goes on leading; it takes them again when there is room.";
    vec![
        struck("killed process", "a_killed_process", "comes back with all that was durable"),
        struck("power loss, torn tail of the journal", "a_torn_tail", "drops the one record that nobody was told of"),
        struck(
            "bit rot in the middle of the journal",
            "a_rotten_journal",
            "opens without the groups whose frames are hit, which stay quarantined until they are replaced under new ids, or, where \
             the directory is hit, not at all",
        )
        .not(JOINING, NOTHING_FORGOTTEN),
        struck(
            "wiped directory, same host id",
            "a_wiped_directory",
            "is not believed for what it had, and is replaced under new ids",
        )
        .not(JOINING, NOTHING_FORGOTTEN),
        struck(
            "directory put back to an older copy",
            "a_directory_put_back",
            "finds out from the others, serves no more, and is replaced under new ids",
        )
        .not(JOINING, NOTHING_FORGOTTEN)
        .not(
            CHANGING,
            "No case of its own: a change is made within milliseconds, and a host that is copied, stopped and put back comes to it as \
             any former leader does.",
        ),
        anywhere(
            "another host's directory",
            "The host is not opened, and nothing in the directory changes.",
            "a_directory_in_use_or_of_another_host_is_refused",
        ),
        struck(
            "EIO on fsync",
            "a_failed_sync",
            "stops at once, releases nothing that depends on it, and is started again",
        ),
        struck("full disk (ENOSPC)", "a_full_disk", "refuses what needs room, and recovers by itself").but(
            0,
            full,
            "a_full_disk_at_the_leader",
        ),
        anywhere(
            "read-only file system (EIO on every write)",
            "The first failed write is final: nothing is written after it, nothing durable is lost.",
            "a_failed_write_or_directory_change_loses_nothing_durable",
        ),
        struck("fsync that hangs for a minute", "a_hanging_sync", "leads nobody before its disk is done"),
        anywhere(
            "crash at each step of settling, or of any write of the store",
            "The store opens with all that was durable.",
            "a_power_loss_at_any_change_loses_nothing_durable",
        ),
    ]
}

fn of_snapshots() -> Vec<Row> {
    let asks = "a_replica_whose_only_snapshot_is_damaged_asks_the_leader_for_one";
    let steps = "a_snapshot_survives_a_death_at_every_step_of_its_life";
    vec![
        anywhere(
            "bit rot in a snapshot",
            "The file is set aside; an older one and the log, or else the leader's, bring the state back.",
            "an_older_snapshot_is_brought_up_to_date_by_the_log",
        )
        .but(0, "It does not campaign without its state; another leads, and sends it a snapshot.", asks)
        .but(
            JOINING,
            "What it receives is checked before it is installed, and asked for again.",
            "a_file_that_is_not_what_was_announced_is_refused",
        )
        .not(
            SILENT,
            "No case of its own: snapshots are read when a replica starts or one is sent, and both wake the group.",
        ),
        anywhere(
            "EIO on reading a snapshot",
            "The file is set aside, as a damaged one is; an error of the moment (too many open files, no memory) stops its \
             replica and leaves the file.",
            "a_snapshot_that_the_disk_cannot_read_is_replaced",
        )
        .not(
            SILENT,
            "No case of its own: snapshots are read when a replica starts or one is sent, and both wake the group.",
        ),
        anywhere(
            "partial snapshot",
            "What no record names is removed at the start.",
            "snapshots_that_no_record_names_go_at_the_start",
        )
        .but(
            0,
            "A transfer that breaks goes on from where it was, or with the next leader.",
            "a_sender_dies_and_another_leader_streams",
        )
        .but(
            JOINING,
            "Chunks are kept apart until all are there and durable.",
            "a_receiver_refuses_what_was_not_announced_and_leaves_nothing",
        )
        .not(SILENT, "No case of its own: who saves, sends or receives one is awake."),
        anywhere(
            "crash at each step of a snapshot",
            "A whole snapshot is there or none, and the log goes on from it.",
            steps,
        )
        .but(
            JOINING,
            "An install is there whole or not at all.",
            "an_install_cut_off_at_any_step_leaves_a_whole_snapshot_or_none",
        )
        .not(SILENT, "No case of its own: who saves or installs one is awake."),
    ]
}

fn of_time_and_machine() -> Vec<Row> {
    vec![
        struck(
            "clock jumps on by a minute",
            "a_clock_that_jumps_on",
            "may campaign early, and no rule depends on its clock",
        ),
        struck(
            "clock set back",
            "a_clock_that_is_set_back",
            "is late for a while, and its incarnations grow all the same",
        ),
        struck(
            "stopped process (SIGSTOP) for a minute",
            "a_stopped_process",
            "finds the groups led by others when it goes on",
        ),
        anywhere(
            "no file handles left (EMFILE)",
            "A call that fails is an error of what was asked for, and leaves nothing half made.",
            "one_failing_call_fails_the_save_and_leaves_nothing",
        )
        .but(
            0,
            "A journal file that can't be made ends the store with its reason; nothing durable is lost.",
            "a_full_disk_fails_the_store_with_its_reason_when_a_segment_can_not_be_made",
        )
        .but(
            1,
            "As at a leader: the journal is the host's.",
            "a_failed_write_or_directory_change_loses_nothing_durable",
        )
        .but(
            SILENT,
            "Of a long archive few files are open, so that it does not come to that.",
            "of_a_long_archive_few_files_stay_open",
        ),
    ]
}

fn of_the_network() -> Vec<Row> {
    let garbage = "The connection is closed, and nothing else.";
    vec![
        struck("partition", "a_partition", "serves nothing that needs the others, and catches up"),
        struck(
            "one-way cut, the host is not heard",
            "a_one_way_cut_from",
            "is given up by the others, though it hears them",
        ),
        struck("one-way cut, the host hears nobody", "a_one_way_cut_to", "steps down, though others hear it"),
        struck("flapping partition", "a_flapping_partition", "unseats nobody who has a majority for long"),
        struck("slow link", "a_slow_link", "is fed at the pace of its link, within bounds"),
        struck(
            "connections that break in mid-frame",
            "broken_connections",
            "connects again, and what was lost is sent again",
        ),
        anywhere("garbage frames", garbage, "garbage_on_the_raft_port_closes_that_connection_and_nothing_else"),
        anywhere(
            "wrong host at an address",
            "It is not spoken to.",
            "another_host_at_a_known_address_is_not_spoken_to",
        ),
    ]
}

fn of_users() -> Vec<Row> {
    let panics = "a_state_machine_that_panics_anywhere_reaches_no_other_group";
    let hangs = "a_state_machine_that_hangs_anywhere_holds_up_no_other_group";
    let silent = "No case of its own: nothing is asked of a silent group's state machine before it wakes.";
    let bounds = "a_full_queue_says_busy_at_once";
    vec![
        anywhere(
            "state machine returns an error",
            "Its replica stops with an event; the host's other groups go on.",
            "a_state_machine_that_panics_stops_its_replica_only",
        )
        .but(
            JOINING,
            "A recovery that fails is reported, and stops that replica alone.",
            "a_state_machine_that_fails_to_recover_is_reported",
        )
        .but(4, "The save fails, and leaves nothing.", "a_save_that_fails_panics_or_is_stopped_leaves_nothing")
        .not(SILENT, silent),
        anywhere("state machine panics", "Its replica stops with an event; the host's other groups go on.", panics)
            .not(SILENT, silent),
        anywhere("state machine hangs", "Its replica waits; the host's other groups go on on spare threads.", hangs)
            .not(SILENT, silent),
        anywhere(
            "proposals past one group's limits",
            "They are refused with `Busy` at once; other groups do not notice.",
            bounds,
        )
        .but(1, "Forwarded proposals count where they are made.", bounds)
        .not(JOINING, "Who has not joined takes no proposals.")
        .not(SILENT, "A proposal wakes the group: then it is a leader's or a follower's."),
    ]
}

/// The page.
pub fn page() -> String {
    let mut page = String::from(
        "# Fault matrix\n\nWhich fault, where it hits, what is required then, and the test that shows it. Printed by `longboat-sim \
         matrix` from `sim/src/matrix/table.rs`; a test fails if this page is another one, if a cell is empty, or if a test does \
         not exist. Tests whose names end in the place are simulations of whole hosts (`sim/tests/matrix.rs`), each over several \
         seeds, with every checker after every step: what a cell requires of the host and of its group comes on top of these. Where \
         a row has one test in all columns, what it requires does not depend on what the host's replicas do.\n\n",
    );
    let _ = writeln!(page, "| fault | {} |", PLACES.join(" | "));
    let _ = writeln!(page, "| --- |{}", " --- |".repeat(PLACES.len()));
    for row in rows() {
        let cells = row.cells.iter().map(|cell| match cell {
            Cell::Test { what, test } => format!("{what} `{test}`"),
            Cell::No(why) => why.clone(),
        });
        let _ = writeln!(page, "| **{}** | {} |", row.fault, cells.collect::<Vec<_>>().join(" | "));
    }
    page
}

/// Cells that say nothing, and tests that are nowhere in the sources below `root`.
pub fn missing(root: &Path) -> Vec<String> {
    let mut sources = String::new();
    read_sources(root, &mut sources);
    let mut missing = Vec::new();
    for row in rows() {
        for (place, cell) in PLACES.iter().zip(&row.cells) {
            let fine = match cell {
                Cell::Test { what, test } => !what.is_empty() && sources.contains(&format!("fn {test}(")),
                Cell::No(why) => !why.is_empty(),
            };
            if !fine {
                missing.push(format!("{} at {place}: {cell:?}", row.fault));
            }
        }
    }
    missing
}

fn read_sources(dir: &Path, out: &mut String) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            read_sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push_str(&std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
}
