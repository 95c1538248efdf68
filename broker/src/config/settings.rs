//! Gathers what flags, environment and file say about each key, and remembers who said it.
//!
//! Precedence: flag, then environment variable, then file, then default.
//! Not here: what the values mean (`values`, `super`).

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgMatches, Command};
use serde_yaml::Value;

use super::{
    Error,
    keys::{self, Key},
    values::Parsed,
};

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where it could be told.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag --{flag}"),
        }
    }
}

/// The flags of the command line: one per key, and `--config`.
#[derive(Clone, Default)]
pub struct Flags {
    /// The YAML file.
    pub config: Option<PathBuf>,
    values: BTreeMap<&'static str, String>,
}

impl Flags {
    /// No flag but the one that names the file.
    pub fn of_file(config: &Path) -> Self {
        Self { config: Some(config.to_owned()), values: BTreeMap::new() }
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config").long("config").short('c').value_name("FILE").help("YAML file with settings");
        command.arg(config.value_parser(clap::value_parser!(PathBuf))).args(keys::ALL.iter().map(|key| flag(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag(key: &'static Key) -> Arg {
    let help = match key.default {
        Some(default) => format!("{} [{}] [default: {default}]", key.help, key.variable()),
        None => format!("{} [{}]", key.help, key.variable()),
    };
    let arg = Arg::new(key.name).long(key.flag()).value_name("VALUE").help(help).hide_default_value(true);
    if key.switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>("config").cloned();
        let given = |key: &&'static Key| Some((key.name, matches.get_one::<String>(key.name)?.clone()));
        self.values = keys::ALL.iter().filter_map(given).collect();
        Ok(())
    }
}

/// What stands for one key.
struct Setting {
    value: Value,
    source: Source,
}

/// The effective settings. Values of secret keys are in here: no `Debug`.
pub struct Settings(BTreeMap<&'static str, Setting>);

impl Settings {
    /// Gathers all sources; later ones in this list win: defaults, file, environment, flags.
    ///
    /// # Errors
    /// When the file cannot be read, or holds keys that do not exist.
    pub fn gather(flags: &Flags, environment: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut settings = Self(BTreeMap::new());
        for key in keys::ALL {
            if let Some(default) = key.default {
                settings.set(key, Value::String(default.into()), Source::Default);
            }
        }
        if let Some(path) = &flags.config {
            settings.read_file(path)?;
        }
        for key in keys::ALL {
            let variable = key.variable();
            // An empty variable is how shells and manifests say "not set".
            if let Some(value) = environment(&variable).filter(|value| !value.is_empty()) {
                settings.set(key, Value::String(value), Source::Environment(variable));
            }
            if let Some(value) = flags.values.get(key.name) {
                settings.set(key, Value::String(value.clone()), Source::Flag(key.flag()));
            }
        }
        Ok(settings)
    }

    fn set(&mut self, key: &'static Key, value: Value, source: Source) {
        self.0.insert(key.name, Setting { value, source });
    }

    fn read_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
        let content = serde_yaml::from_str(&text).map_err(|source| Error::ParseFile { path: path.into(), source })?;
        let entries = match content {
            Value::Null => return Ok(()),
            Value::Mapping(entries) => entries,
            _ => return Err(Error::NoMapping { path: path.into() }),
        };
        for (name, value) in entries {
            let name = name.as_str().unwrap_or("(not a text)").to_owned();
            let place = Source::File { path: path.into(), line: line_of(&text, &name) };
            match keys::find(&name) {
                Some(key) => self.set(key, value, place),
                None => return Err(Error::UnknownKey { nearest: keys::nearest(&name), name, place }),
            }
        }
        Ok(())
    }

    /// The value of a key as `parse` understands it; `None` if nobody gave one.
    pub(super) fn get<T>(
        &self,
        key: &'static Key,
        parse: impl FnOnce(&Value) -> Parsed<T>,
    ) -> Result<Option<T>, Error> {
        let Some(setting) = self.0.get(key.name) else { return Ok(None) };
        let invalid = |reason| Error::Invalid { key: key.name, place: setting.source.clone(), reason };
        parse(&setting.value).map(Some).map_err(invalid)
    }

    /// The settings as a YAML file, each with its source; secrets are left out.
    pub fn print(&self) -> String {
        let mut out = String::new();
        for key in keys::ALL {
            let line = match self.0.get(key.name) {
                None => format!("# {}: not set\n", key.name),
                Some(setting) if key.secret => format!("{}: \"[redacted]\"  # {}\n", key.name, setting.source),
                Some(setting) => format!("{}: {}  # {}\n", key.name, flow(&setting.value), setting.source),
            };
            out.push_str(&line);
        }
        out
    }
}

/// A value on one line. JSON is YAML, and quotes every text that YAML might take for something else.
fn flow(value: &Value) -> String {
    match serde_json::to_string(value) {
        Ok(json) => json,
        Err(_) => "\"[cannot be shown]\"".into(),
    }
}

/// The line, from 1, on which a top-level key of a YAML text stands.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let starts = |line: &str| {
        let line = line.trim_start_matches(['"', '\'']);
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    text.lines().position(starts).map(|index| index + 1)
}
