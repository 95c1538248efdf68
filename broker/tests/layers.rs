//! The direction of imports, held by reading the sources: which part may speak of which.
//!
//! Every path in `src` (in `use` lines and in expressions) is made absolute and compared with [`RULES`]. Comments, text
//! and test modules are left out. Not seen: a name that reaches a file through another module's `pub use`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What the parts under `within`, less those under `except`, never name.
struct Rule {
    within: &'static [&'static str],
    except: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

/// Everything in the crate.
const ALL: &[&str] = &["crate"];

/// Names as [`covers`] reads them.
const RULES: &[Rule] = &[
    Rule {
        within: &["crate::store"],
        except: &[],
        never: &[
            "tonic",
            "openraft*",
            "tokio",
            "rand",
            "futures",
            "std::time::SystemTime",
            "std::time::Instant",
            "std::env",
            "std::thread",
            "crate::node",
            "crate::raft",
            "crate::server",
            "crate::cli",
            "crate::config",
        ],
        why: "the store is a function of itself and the command: no clock, no chance, no tasks, nothing of gRPC or Raft",
    },
    Rule {
        within: &[
            "crate::store::codec",
            "crate::store::filter",
            "crate::store::query",
            "crate::store::mask",
            "crate::store::text",
            "crate::store::cidr",
            "crate::node::route",
        ],
        except: &[],
        never: &[
            "std::fs",
            "std::io",
            "std::net::Tcp*",
            "std::time::SystemTime",
            "std::time::Instant",
            "tokio",
            "rand",
        ],
        why: "these decide and do nothing: no input or output, no clock, no tasks",
    },
    Rule {
        within: &["crate::raft"],
        except: &[],
        never: &["crate::node", "crate::server", "crate::cli", "crate::config", "crate::peer"],
        why: "calls go server → node → raft → store; news comes back as watch values",
    },
    Rule {
        within: &["crate::peer"],
        except: &[],
        never: &["crate::store", "crate::node", "crate::server", "crate::cli"],
        why: "it carries what `raft::transport` says, and calls whatever implements its traits",
    },
    Rule {
        within: &["crate::net"],
        except: &[],
        never: &[
            "crate::store",
            "crate::raft",
            "crate::node",
            "crate::peer",
            "crate::server",
            "crate::cli",
            "crate::config",
        ],
        why: "connections and files know nothing of what they are for",
    },
    Rule {
        within: &["crate::node"],
        except: &[],
        never: &["crate::server", "crate::cli"],
        why: "calls go server → node → raft → store; news comes back as watch values",
    },
    Rule {
        within: &["crate::server"],
        // Metrics are handed to the log as its observer.
        except: &["crate::server::metrics"],
        never: &["crate::raft", "crate::cli"],
        why: "the edge speaks to the node, which knows Raft; the tools are another program in the same binary",
    },
    Rule {
        within: &["crate::cli"],
        except: &[],
        never: &["crate::raft", "crate::node", "crate::store::Store", "crate::store::engine"],
        why: "the tools use nothing but the public interface, so that they work against any server that speaks it",
    },
    Rule { within: ALL, except: &["crate::raft"], never: &["openraft*"], why: "only `raft` knows openraft" },
    Rule {
        within: ALL,
        except: &["crate::store::engine::fjall"],
        never: &["fjall"],
        why: "only `store::engine::fjall` knows fjall",
    },
    Rule {
        within: ALL,
        except: &["crate::server", "crate::peer::server", "crate::peer::services", "crate::peer::socket"],
        never: &["databroker_proto::*_server"],
        why: "only `server` answers gRPC calls of clients, and `peer` those of members and operators",
    },
    Rule {
        within: ALL,
        except: &["crate::server", "crate::peer", "crate::cli"],
        never: &["tonic::Status", "tonic::Code"],
        why: "only `server` and `peer` make a status, each in one file; the tools read one as clients",
    },
    Rule {
        within: ALL,
        except: &["crate::config", "crate::run", "crate::main", "crate::cli"],
        never: &["crate::config::Config"],
        why: "each layer gets its own validated group of settings, never the whole",
    },
    Rule {
        within: ALL,
        except: &["crate::main"],
        never: &["anyhow"],
        why: "errors name the failed action and its subject; only the outermost shell may forget their types",
    },
];

#[test]
fn every_part_names_only_what_lies_below_it() {
    let mut broken = Vec::new();
    for Source { module, file, text } in sources() {
        for path in paths(&module, &text) {
            for rule in RULES.iter().filter(|rule| rule.binds(&module)) {
                if let Some(never) = rule.never.iter().find(|never| covers(never, &path)) {
                    broken.push(format!("{}: {path} (never {never}: {})", file.display(), rule.why));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn every_file_says_first_what_it_is() {
    let silent: Vec<_> = sources().into_iter().filter(|source| !source.text.starts_with("//!")).collect();
    let files: Vec<_> = silent.iter().map(|source| &source.file).collect();
    assert!(files.is_empty(), "no `//!` at the top of {files:?}");
}

#[test]
fn the_reader_of_paths_sees_groups_relatives_and_expressions() {
    let text = r#"
use std::{fs, time::{self, SystemTime as Now}};
use super::engine::*;
// use tokio::time;
pub(crate) use self::inner::Thing;
fn f(x: crate::node::Node) -> super::super::config::Config { let text = "openraft::Raft"; tonic::Status::ok(text) }
#[cfg(test)]
mod tests { use rand::rng; }
"#;
    let found = paths("crate::store::machine", text);
    for path in [
        "std::fs",
        "std::time",
        "std::time::SystemTime",
        "crate::store::engine",
        "crate::store::machine::inner::Thing",
        "crate::node::Node",
        "crate::config::Config",
        "tonic::Status::ok",
    ] {
        assert!(found.contains(path), "{path} is missing in {found:?}");
    }
    for path in ["tokio::time", "openraft::Raft", "rand::rng"] {
        assert!(!found.contains(path), "{path} is in {found:?}");
    }
}

#[test]
fn a_name_covers_what_lies_under_it_and_no_more() {
    assert!(covers("tonic::Status", "tonic::Status::ok") && !covers("tonic::Status", "tonic::StatusCode"));
    assert!(covers("openraft*", "openraft_rt::Runtime") && !covers("fjall", "fjallish"));
    assert!(covers("p::*_server", "p::registry::registry_server::Server") && !covers("p::*_server", "p::registry"));
}

impl Rule {
    fn binds(&self, module: &str) -> bool {
        let under = |parts: &[&str]| parts.iter().any(|part| covers(part, module));
        under(self.within) && !under(self.except)
    }
}

/// Whether `path` is `name` or lies under it. `p*` covers what begins so; `a::*_b` any path under `a` with a part that
/// ends in `_b`.
fn covers(name: &str, path: &str) -> bool {
    if let Some((root, ending)) = name.split_once("::*") {
        return covers(root, path) && path.split("::").any(|part| part.ends_with(ending));
    }
    match name.strip_suffix('*') {
        Some(beginning) => path.starts_with(beginning),
        None => path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")),
    }
}

struct Source {
    module: String,
    file: PathBuf,
    text: String,
}

/// All source files but those of modules that only tests have.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let file = entry.unwrap().path();
            if file.is_dir() {
                folders.push(file);
            } else if file.extension().is_some_and(|ending| ending == "rs") {
                let module = module_of(file.strip_prefix(&root).unwrap());
                found.push(Source { module, text: fs::read_to_string(&file).unwrap(), file });
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    let tests: Vec<_> = found.iter().flat_map(test_modules).collect();
    found.retain(|source| !tests.iter().any(|test| covers(test, &source.module)));
    found
}

/// The modules in files of their own that a source declares for tests alone.
fn test_modules(source: &Source) -> Vec<String> {
    let declared = source.text.split("#[cfg(").skip(1).filter_map(|after| {
        let (condition, after) = after.split_once('\n')?;
        let line = after.lines().find(|line| !line.starts_with('#')).filter(|_| condition.contains("test"))?;
        line.split_once("mod ")?.1.strip_suffix(';')
    });
    declared.map(|name| format!("{}::{name}", source.module)).collect()
}

/// `store/engine/mod.rs` → `crate::store::engine`.
fn module_of(file: &Path) -> String {
    let mut parts = vec!["crate".to_owned()];
    parts.extend(file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()));
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts.join("::")
}

/// Every path of two parts or more, and every `use`, made absolute.
fn paths(module: &str, text: &str) -> BTreeSet<String> {
    let code = without_text(text.split("#[cfg(test)]\nmod ").next().unwrap());
    let mut found = BTreeSet::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find(is_name) {
        let path = leading_path(&rest[at..]);
        rest = &rest[at + path.len()..];
        if path == "use" {
            let (tree, after) = rest.split_once(';').unwrap_or((rest, ""));
            expand("", tree, &mut |path| _ = found.insert(absolute(module, path)));
            rest = after;
        } else if path.contains("::") {
            found.insert(absolute(module, path.trim_end_matches("::")));
        }
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The names joined by `::` at the beginning of `text`.
fn leading_path(text: &str) -> &str {
    let mut end = 0;
    loop {
        end += text[end..].find(|c| !is_name(c)).unwrap_or(text.len() - end);
        if !text[end..].starts_with("::") {
            return &text[..end];
        }
        end += 2;
    }
}

/// `a::{b, c::{self, d as e}, f::*}` → `a::b`, `a::c`, `a::c::d`, `a::f`.
fn expand(prefix: &str, tree: &str, each: &mut dyn FnMut(&str)) {
    let Some((head, group)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap().trim();
        return each(format!("{prefix}{name}").trim_end_matches("::*").trim_end_matches("::self"));
    };
    let prefix = format!("{prefix}{}", head.trim());
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        if depth == 0 && (c == ',' || c == '}') {
            if !group[start..at].trim().is_empty() {
                expand(&prefix, &group[start..at], each);
            }
            start = at + 1;
        }
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// Resolves `self` and `super`; `databroker` is the library's own name, as the binary says it.
fn absolute(module: &str, path: &str) -> String {
    let mut base: Vec<_> = module.split("::").collect();
    let mut parts: Vec<_> = path.split("::").collect();
    match parts[0] {
        "self" | "super" => {}
        "databroker" => base = vec!["crate"],
        _ => return path.to_owned(),
    }
    while parts.first() == Some(&"super") {
        base.pop();
        parts.remove(0);
    }
    parts.retain(|part| !["self", "databroker"].contains(part));
    base.extend(parts);
    base.join("::")
}

/// The code without comments and without what stands in quotes.
fn without_text(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '\'' if rest.starts_with("'\"'") => 3,
            '"' => quoted_length(rest),
            _ => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[skipped..];
    }
    out
}

fn quoted_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}
