//! The direction of imports, held by reading the sources. Not seen: a name that reaches a file through another module's
//! `pub use`.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Files whose path begins with `within` never name any of `never`, comments and tests left out.
struct Rule {
    within: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule { within: &["api/"], never: &["crate::"], why: "what people write depends on nothing of ours" },
    Rule {
        within: &["resources/"],
        never: &[
            "crate::context",
            "crate::controller",
            "crate::brokers",
            "crate::metrics",
            " Client",
            "Api<",
            "async fn",
        ],
        why: "builders are functions of a validated object",
    },
    Rule {
        within: &[
            "reconcile/plan.rs",
            "reconcile/validate.rs",
            "reconcile/difference.rs",
            "reconcile/status.rs",
            "reconcile/status/",
        ],
        never: &[
            "crate::context",
            "crate::controller",
            "crate::brokers",
            " Client",
            "Api<",
            "Timestamp::now",
            "SystemTime",
            "async fn",
        ],
        why: "these decide and do nothing: no client, no clock",
    },
    Rule {
        within: &["reconcile/plan.rs"],
        never: &["crate::", "k8s_openapi", "kube"],
        why: "the planner knows its own words alone",
    },
    Rule {
        within: &["reconcile/", "brokers.rs"],
        never: &["crate::controller", "crate::config"],
        why: "when is not what",
    },
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The file without comments, and without what follows the first test module.
fn code(text: &str) -> String {
    let own = text.split("#[cfg(test)]").next().unwrap_or_default();
    own.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Test modules in files of their own.
fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.ends_with("simulation.rs")
}

#[test]
fn every_part_names_only_what_lies_below_it_and_says_first_what_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut broken = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        if !text.starts_with("//!") {
            broken.push(format!("{name}: no `//!` at the top"));
        }
        let code = if is_test(&name) { String::new() } else { code(&text) };
        for rule in RULES.iter().filter(|rule| rule.within.iter().any(|within| name.starts_with(within))) {
            for never in rule.never.iter().filter(|never| code.contains(**never)) {
                broken.push(format!("{name}: {never} ({})", rule.why));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn comments_and_tests_are_left_out() {
    assert_eq!(code("use a; // use b;\n#[cfg(test)]\nuse c;"), "use a; ");
}
