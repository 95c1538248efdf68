//! A volume that is full: a small one in memory, which only the broker's process sees.
//!
//! It takes the right to mount: root, or a system that lets anybody have a name space of their own. Elsewhere the test says
//! that it was left out.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use databroker_proto::{
    Record,
    databroker::{GetRequest, PutRequest},
};
use futures::future::join_all;
use tonic::{Code, Status};

use crate::support::{Broker, Client, PATIENCE, binary};

/// Small enough to be full soon, and to fit into the memory of a machine that runs tests.
const SIZE: &str = "512m";
const LARGER: &str = "1g";

const WRITERS: usize = 8;
const RECORD_BYTES: usize = 100 << 10;
/// More than the volume holds.
const RECORDS_MAX: usize = 8_000;
/// Writes that are tried while it is full: if each took some of the reserve, it would be gone.
const TRIED_IN_VAIN: usize = 1_000;

/// A process that sees a file system of its own on the folder; `None` where nobody may have that.
fn start(folder: &Path) -> Option<Broker> {
    std::fs::create_dir_all(folder).unwrap();
    let unshare = |command: &[&str]| {
        let own: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--map-root-user"] };
        let mut unshare = Command::new("unshare");
        unshare
            .args(own)
            .args(["--mount", "--"])
            .args(command)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        unshare
    };
    let mount = format!("mount -t tmpfs -o size={SIZE} none {}", folder.display());
    let tried = unshare(&["sh", "-c", &mount]).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        println!("LEFT OUT: a volume of its own cannot be mounted here");
        return None;
    }
    let serve = format!(
        "{mount} && exec \"$0\" serve --grpc-address 127.0.0.1:0 --health-check-addr 127.0.0.1:0 \
         --databroker-storage-connection-string file://{}",
        folder.display()
    );
    // Each takes the place of the one before, so that the child is the broker.
    let child = unshare(&["sh", "-c", &serve, &binary().to_string_lossy()]);
    let seen = |pid: u32| PathBuf::from(format!("/proc/{pid}/root{}", folder.display()));
    Some(Broker::start_as(child, folder, seen).unwrap_or_else(|refusal| panic!("it does not start: {refusal:?}")))
}

/// How long a write may wait while tables are put together: the processors may be busy with other tests.
const HELD_MAX: Duration = Duration::from_secs(60);

/// What is not said by the disk, but by a queue that was full for a while, is tried again.
async fn put(client: &mut Client, id: usize) -> Result<(), Status> {
    let began = Instant::now();
    loop {
        match put_once(client, id).await {
            Err(status) if status.code() == Code::Unavailable && began.elapsed() < HELD_MAX => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done => return done,
        }
    }
}

async fn put_once(client: &mut Client, id: usize) -> Result<(), Status> {
    let data = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.BytesValue".into(),
        // Nothing that a compressor makes small.
        value: (0..RECORD_BYTES).map(|_| rand::random::<u8>()).collect(),
    };
    let record = Record { r#type: "full".into(), id: id.to_string(), data: Some(data), ..Record::default() };
    client.put(PutRequest { records: vec![record.into()] }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_volume_refuses_records_and_serves_those_it_has_until_it_is_enlarged() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let Some(mut broker) = start(&folder) else { return };
    let client = broker.client().await;

    // Until every writer is refused.
    let filled = join_all((0..WRITERS).map(|writer| {
        let mut client = client.clone();
        async move {
            for id in (writer..RECORDS_MAX).step_by(WRITERS) {
                if let Err(status) = put(&mut client, id).await {
                    return (id, Some(status));
                }
            }
            (RECORDS_MAX, None)
        }
    }))
    .await;
    for (_, refused) in &filled {
        let refused = refused.as_ref().expect("a volume is never full");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("DISK_FULL"), "{refused}");
    }

    // Whoever goes on trying is refused, and costs it nothing; what is there is read.
    let mut one = client.clone();
    for id in 0..TRIED_IN_VAIN {
        match put(&mut one, RECORDS_MAX + id).await {
            // A piece of the log may be given back.
            Ok(()) => {}
            Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}"),
        }
    }
    assert!(broker.runs(), "it ended: {}", broker.stderr());
    for (writer, (refused, _)) in filled.iter().enumerate() {
        for id in (writer..*refused).step_by(WRITERS) {
            one.get(GetRequest { r#type: "full".into(), id: id.to_string() }).await.unwrap();
        }
    }

    // Enlarged, it goes on by itself.
    let remount = format!("mount -o remount,size={LARGER} {}", folder.display());
    let pid = broker.pid().to_string();
    let user: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--preserve-credentials"] };
    let nsenter = Command::new("nsenter").args(user).args(["--target", &pid, "--mount", "sh", "-c", &remount]).status();
    assert!(nsenter.unwrap().success(), "the volume can be enlarged");
    let began = Instant::now();
    while let Err(refused) = put(&mut one, RECORDS_MAX).await {
        assert!(broker.runs(), "it ended: {}", broker.stderr());
        assert!(began.elapsed() < PATIENCE, "it takes no records: {refused}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(broker.stop().success(), "it ends in good order");
}
