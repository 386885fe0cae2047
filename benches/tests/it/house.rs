//! Rules of the house that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file at most: one idea per module.
const FILE_LINES_MAX: usize = 700;
/// Columns of a line of code at most: the formatter breaks at 120 what it can break.
const LINE_COLUMNS_MAX: usize = 180;

/// What each crate of the house may depend on, of the house; its tests may reach further. A crate that is not here fails the test.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("raft", &[]),
    ("io", &["raft"]),
    ("rsm", &["raft", "io"]),
    ("logdb", &["raft", "io"]),
    ("faultfs", &[]),
    ("transport", &["raft", "io"]),
    ("engine", &["raft", "io", "rsm", "logdb", "transport"]),
    ("nodehost", &["raft", "io", "rsm", "logdb", "transport", "engine"]),
    ("sim", &["nodehost", "raft", "io", "rsm", "logdb", "transport", "engine"]),
    ("cli", &["nodehost"]),
    ("examples", &["nodehost"]),
    ("benches", &["raft", "io", "rsm", "logdb", "transport", "engine", "nodehost"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files of the project with one of these extensions, as paths from its root.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(dir: &Path, extensions: &[&str], out: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> =
            fs::read_dir(dir).expect("a directory of the project").map(|e| e.expect("an entry").path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name == "target" || name == ".git" {
                continue;
            } else if path.is_dir() {
                walk(&path, extensions, out);
            } else if extensions.iter().any(|e| name.ends_with(e)) {
                out.push(path);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root(), extensions, &mut out);
    assert!(!out.is_empty(), "no file with {extensions:?} under {}", root().display());
    out
}

/// Fails with all places at once: `found` yields what is wrong with a file's text.
fn check(extensions: &[&str], rule: &str, found: impl Fn(&str) -> Vec<String>) {
    let mut wrong = Vec::new();
    for path in files(extensions) {
        let text = fs::read_to_string(&path).expect("a text file");
        wrong.extend(found(&text).into_iter().map(|what| format!("{}: {what}", path.display())));
    }
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

fn lines_with(text: &str, is_wrong: impl Fn(&str) -> bool) -> Vec<String> {
    let wrong = text.lines().enumerate().filter(|(_, line)| is_wrong(line));
    wrong.map(|(n, line)| format!("line {}: {}", n + 1, line.trim())).collect()
}

#[test]
fn no_source_file_is_too_long() {
    check(&[".rs"], "files stay short", |text| {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX { vec![format!("{lines} lines, at most {FILE_LINES_MAX}")] } else { Vec::new() }
    });
}

#[test]
fn no_line_of_code_is_too_wide() {
    check(&[".rs"], "lines fit a screen", |text| {
        lines_with(text, |line| !line.trim_start().starts_with("//") && line.chars().count() > LINE_COLUMNS_MAX)
    });
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not hold the words.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|w| w.concat());
    check(&[".rs", ".toml", ".md", ".sh", "Makefile"], "work is done or in an issue", |text| {
        lines_with(text, |line| words.iter().any(|w| line.contains(w.as_str())))
    });
}

#[test]
fn nothing_names_a_machine() {
    let places = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/Us", "ers/"]].map(|p| p.concat());
    check(&[".rs", ".toml", ".md", ".sh", "Makefile", "run"], "no path of one machine", |text| {
        lines_with(text, |line| places.iter().any(|p| line.contains(p.as_str())))
    });
}

#[test]
fn every_module_says_what_it_is() {
    check(&[".rs"], "a module opens with //!", |text| {
        if text.contains("#[test]") && text.starts_with("use super::") {
            return Vec::new(); // the tests of a module, in a file of their own
        }
        let opening = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        let generated = text.contains("@generated");
        let says = opening.is_some_and(|line| line.starts_with("//!") && line.len() > 8)
            || text.starts_with("#![doc = include_str!(");
        if says || generated { Vec::new() } else { vec!["no //! line that says what it owns".into()] }
    });
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    for manifest in files(&["Cargo.toml"]) {
        let text = fs::read_to_string(&manifest).expect("a manifest");
        if text.contains("[workspace]") {
            continue;
        }
        let dir =
            manifest.parent().and_then(Path::file_name).expect("a crate's directory").to_string_lossy().into_owned();
        let allowed = allowed.get(dir.as_str()).unwrap_or_else(|| panic!("crate {dir} has no rule"));
        let found = house_dependencies(&text);
        let wrong: Vec<_> = found.iter().filter(|d| !allowed.contains(&d.as_str())).collect();
        assert!(wrong.is_empty(), "{dir} must not depend on {wrong:?}");
    }
}

/// The directories of the house's crates that a manifest's crate depends on.
fn house_dependencies(manifest: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let name = line.split(['.', '=', ' ']).next()?.to_owned();
        let dir = if name == "longboat" { "nodehost" } else { name.strip_prefix("longboat-")? };
        Some(dir.to_owned())
    };
    let in_section = |dependencies: &mut bool, line: &str| {
        if line.starts_with('[') {
            *dependencies = line == "[dependencies]";
        }
        Some(if *dependencies { line.to_owned() } else { String::new() })
    };
    manifest.lines().scan(false, in_section).filter_map(|line| name(&line)).collect()
}

#[test]
fn the_protocol_crate_bans_the_environment() {
    let banned = fs::read_to_string(root().join("raft/clippy.toml")).expect("the ban list of raft");
    for what in ["std::time::Instant::now", "std::thread::spawn", "std::fs::"] {
        assert!(banned.contains(what), "raft/clippy.toml does not ban {what}");
    }
}

#[test]
fn every_planted_bug_has_its_place_in_the_code() {
    let registered: BTreeSet<String> = longboat_raft::plant::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut planted = BTreeSet::new();
    for path in files(&[".rs"]).iter().filter(|path| path.components().any(|c| c.as_os_str() == "src")) {
        let text = fs::read_to_string(path).expect("a text file");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let names = line.split("plant::is(\"").skip(1).filter_map(|rest| rest.split('"').next());
            planted.extend(names.map(str::to_owned));
        }
    }
    assert_eq!(planted, registered, "what the code asks for, and the registry in raft/src/plant.rs");
}

#[test]
fn formats_are_written_down() {
    for page in ["docs/log-format.md", "docs/snapshot-format.md"] {
        let text = fs::read_to_string(root().join(page)).expect(page).to_lowercase();
        for word in ["magic", "version", "crc"] {
            assert!(text.contains(word), "{page} does not say a word of its {word}");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in files(&[".md"]) {
        let text = fs::read_to_string(&path).expect("a document");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().expect("split yields at least one part");
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let to = path.parent().expect("a file is in a directory").join(file);
            assert!(to.exists(), "{}: link to {target} leads nowhere", path.display());
        }
    }
}
