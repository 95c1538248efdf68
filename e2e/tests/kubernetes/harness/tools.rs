//! Programs that people use too: kubectl, helm, and the script that made the cluster.

use std::{ffi::OsStr, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// No call of a program takes longer.
const CALL_MAX: Duration = Duration::from_secs(180);

/// Runs a program; its output, if it succeeds.
///
/// # Errors
/// It cannot be run, fails, or takes too long.
pub(crate) async fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> anyhow::Result<String> {
    let line = || {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
        format!("{program} {}", arguments.join(" "))
    };
    let running = Command::new(program).args(arguments).kill_on_drop(true).output();
    let ended = tokio::time::timeout(CALL_MAX, running).await.with_context(|| format!("{} takes too long", line()))?;
    let ended = ended.with_context(|| format!("cannot run {program}"))?;
    let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success(), "{}: {}: {said}{complained}", line(), ended.status);
    Ok(said.into_owned())
}

/// kubectl.
///
/// # Errors
/// See [`run`].
pub(crate) async fn kubectl(arguments: &[&str]) -> anyhow::Result<String> {
    run("kubectl", arguments).await
}

/// A command in a pod.
///
/// # Errors
/// See [`run`].
pub(crate) async fn in_pod(namespace: &str, pod: &str, command: &[&str]) -> anyhow::Result<String> {
    kubectl(&[&["exec", "--namespace", namespace, pod, "--request-timeout=10s", "--"], command].concat()).await
}

/// Cuts a node off its network, or gives it back.
pub(crate) struct Cutter(PathBuf);

impl Cutter {
    /// `None` where nobody can, which is said: the story is left out.
    pub(crate) fn at_hand() -> Option<Self> {
        let script = std::env::var_os("E2E_CLUSTER");
        if script.is_none() {
            println!("LEFT OUT: nobody can cut a node off (E2E_CLUSTER)");
        }
        script.map(|script| Self(script.into()))
    }

    async fn ask(&self, what: &str, node: &str) -> anyhow::Result<()> {
        let number = node.strip_prefix("node").context("a node of another kind of cluster")?;
        run(&self.0.to_string_lossy(), &[what, number]).await.map(drop)
    }

    pub(crate) async fn cut(&self, node: &str) -> anyhow::Result<()> {
        self.ask("cut", node).await
    }

    pub(crate) async fn join(&self, node: &str) -> anyhow::Result<()> {
        self.ask("join", node).await
    }
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The tag of the images under test.
pub(crate) fn tag() -> String {
    std::env::var("E2E_TAG").unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned())
}

/// Writes down what is in a namespace, and what the operator says, under target/e2e.
pub(crate) fn dump(namespace: &str) {
    let folder = repository().join("target/e2e").join(namespace);
    if let Err(error) = fs::create_dir_all(&folder) {
        println!("cannot make {}: {error}", folder.display());
        return;
    }
    let own = ["--namespace", namespace];
    let operator = ["--namespace", super::operator::NAMESPACE];
    let all = "databrokers,statefulsets,pods,persistentvolumeclaims,services,configmaps,poddisruptionbudgets";
    let of_operator = "--selector=app.kubernetes.io/name=databroker-operator";
    let of_brokers = "--selector=app.kubernetes.io/name=databroker";
    let tail = ["--tail=-1", "--prefix", "--timestamps"];
    for (file, arguments) in [
        ("objects.yaml", [&["get", all, "-o", "yaml"][..], &own].concat()),
        ("events.txt", [&["get", "events", "--sort-by=.lastTimestamp"][..], &own].concat()),
        ("pods.txt", [&["describe", "pods"][..], &own].concat()),
        ("brokers.log", [&["logs", of_brokers][..], &tail, &own].concat()),
        ("brokers-before.log", [&["logs", "--previous", of_brokers][..], &tail, &own].concat()),
        ("operator.log", [&["logs", of_operator][..], &tail, &operator].concat()),
    ] {
        let ran = std::process::Command::new("kubectl").args(arguments).output();
        let written = ran.and_then(|ended| fs::write(folder.join(file), [ended.stdout, ended.stderr].concat()));
        if let Err(error) = written {
            println!("cannot write {file}: {error}");
        }
    }
    println!("what was there is in {}", folder.display());
}
