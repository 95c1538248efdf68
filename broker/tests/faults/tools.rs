//! The tools, as processes, against a cluster of processes: what they do when nodes die or do not know them.
//!
//! Not here: what they print (`cli::tests`).

use std::{
    fs::{self, File},
    net::TcpStream,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use super::{
    cluster::Cluster,
    rounds, seeded,
    support::{PATIENCE, binary, end},
    trial::{addresses, is_whole},
};

fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

async fn latest(cluster: &Cluster, node: usize) -> u64 {
    let info = addresses(cluster).client(node).server_info(()).await.unwrap();
    info.into_inner().latest_record_version
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bench_over_three_addresses_fails_no_call_when_a_node_is_killed() {
    seeded("bench");
    let mut cluster = Cluster::start(3).await;
    let addresses: Vec<_> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.grpc)).collect();
    let addresses = addresses.join(",");
    for round in 0..rounds(10) {
        // Every other time a follower.
        let node = (cluster.leader().unwrap() + round % 2) % 3;
        let written = latest(&cluster, node).await;
        let load = ["--rate", "100", "--records", "100", "--warm-up", "0s", "--duration", "5s", "-o", "json"];
        let bench = tool(&[&["bench", "put", "--address", &addresses], &load[..]].concat())
            .env("SHARED_SECRET", cluster.key.to_base64())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while latest(&cluster, node).await < written + 150 {
            assert!(began.elapsed() < PATIENCE, "nothing is written\n{}", cluster.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cluster.kill(node);
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(|| bench.wait_with_output().unwrap()).await.unwrap();
        assert!(status.success(), "{}\n{}", String::from_utf8_lossy(&stderr), String::from_utf8_lossy(&stdout));
        let reports: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
        let report = &reports[0];
        assert_eq!(report["errors"], 0, "{report:#}");
        println!(
            "killed {node}: {} calls, {} retried, longest gap {} ms",
            report["count"], report["retried"], report["longest_gap_ms"]
        );
        cluster.spawn(node);
        cluster.wait_for_all("all nodes have caught up", is_whole).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_no_use_where_those_of_the_nodes_come_from_the_secret_and_the_tool_says_so() {
    let cluster = Cluster::start(3).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    for command in ["ca", "admin"] {
        assert!(tool(&["certs", command, "--dir", folder]).status().unwrap().success());
    }
    let files = ["ca.pem", "admin.pem", "admin-key.pem"].map(|file| format!("{folder}/{file}"));
    let address = format!("127.0.0.1:{}", cluster.proxies[0].port);
    let mut status = tool(&["cluster", "status", "--peers-address", &address, "--peers-ca", &files[0]]);
    let output = status.args(["--admin-cert", &files[1], "--admin-key", &files[2]]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("come from the shared secret") && said.contains("socket of a node"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dev_cluster_that_is_terminated_leaves_neither_keys_nor_nodes() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, log) = (parent.path().join("tmp"), parent.path().join("log"));
    fs::create_dir(&folder).unwrap();
    let mut dev = tool(&["dev", "--nodes", "1"]);
    let mut dev = dev.env("TMPDIR", &folder).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let began = Instant::now();
    let address = loop {
        let said = fs::read_to_string(&log).unwrap();
        let address = said.lines().find_map(|line| line.trim().strip_prefix("export DATABROKER_ADDRESS="));
        if let Some(address) = address {
            break address.to_owned();
        }
        assert!(began.elapsed() < PATIENCE, "it does not start: {said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    assert!(TcpStream::connect(&address).is_ok());
    assert_eq!(end(&mut dev).code(), Some(143));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert!(TcpStream::connect(&address).is_err());
}
