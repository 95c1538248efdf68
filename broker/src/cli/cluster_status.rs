//! How the status of a cluster is shown: a table, and a sentence that answers who leads and which node may be stopped.

use std::time::Duration;

use comfy_table::Color;
use databroker_proto::internal::{MemberStatus, RefusingPeer, ShapeMember, StatusReply, member_status::Role};
use serde::Serialize;

use super::{
    duration::short,
    failure::Failure,
    output::{Format, Output, Styled, printable},
};

const HEADER: &[&str] =
    &["NAME", "ID", "ROLE", "TERM", "COMMITTED", "APPLIED", "LAG", "DISK", "VERSION", "COMMANDS", "MAY STOP"];

/// Enough of a node's id to tell the lives of a disk apart.
const SHORT_ID_CHARS: usize = 8;

/// Prints it once.
pub(super) fn print(status: &StatusReply, output: &mut Output) -> Result<(), Failure> {
    if !output.for_people() {
        return output.value(&StatusJson::from(status));
    }
    let rows = status.members.iter().map(|member| row(member, output.format())).collect();
    output.table(HEADER, rows, "no node has said Hello yet")?;
    for line in summary(status) {
        output.line(&line)?;
    }
    Ok(())
}

/// Prints it in place of the one before.
pub(super) fn print_again(status: &StatusReply, output: &mut Output) -> Result<(), Failure> {
    if !output.for_people() {
        return output.stream_value(&StatusJson::from(status));
    }
    if output.on_terminal() {
        output.bytes(b"\x1b[H\x1b[2J")?;
    } else {
        output.line("")?;
    }
    print(status, output)
}

fn row(member: &MemberStatus, format: Format) -> Vec<Styled> {
    let id = format!("{:016x}", member.node);
    let id = if format == Format::Wide { id } else { id.chars().take(SHORT_ID_CHARS).collect() };
    let role = match (member.reachable, member.role()) {
        (false, role) => Styled::new(format!("{} (gone)", role_name(role)), Color::Red),
        (true, Role::Leader) => Styled::new(role_name(Role::Leader), Color::Green),
        (true, role) => role_name(role).into(),
    };
    let (stop, colour) = if member.may_stop { ("yes", Color::Green) } else { ("no", Color::Yellow) };
    vec![
        printable(&member.name).into(),
        id.into(),
        role,
        member.term.to_string().into(),
        member.committed_index.to_string().into(),
        member.applied_index.to_string().into(),
        lag(member).into(),
        disk(member).into(),
        printable(&member.version).into(),
        member.command_version.to_string().into(),
        Styled::new(stop, colour),
    ]
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Waiting => "waiting",
        Role::Unspecified => "unknown",
    }
}

fn lag(member: &MemberStatus) -> String {
    match (member.lag_records, member.lag_millis) {
        _ if member.role() == Role::Leader => "-".to_owned(),
        // Every node says its version: this one was not heard since the answering node started.
        _ if member.version.is_empty() => "-".to_owned(),
        (0, 0) => "0".to_owned(),
        (records, millis) => format!("{records} ({})", short(Duration::from_millis(millis))),
    }
}

fn disk(member: &MemberStatus) -> String {
    match member.disk_bytes {
        0 => "-".to_owned(),
        used => {
            let full = if member.disk_full { ", FULL" } else { "" };
            format!("{} ({} free{full})", size(used), size(member.disk_bytes_free))
        }
    }
}

fn size(bytes: u64) -> String {
    let (mut number, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if number < 1024.0 {
            break;
        }
        (number, unit) = (number / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{number:.1} {unit}") }
}

/// Who leads, may I take a node away, and what is under way.
fn summary(status: &StatusReply) -> Vec<String> {
    let refusing = status.refusing.iter();
    let refusing: Vec<_> = refusing
        .map(|RefusingPeer { peer, reason }| {
            format!("{} refuses {}: {}.", printable(peer), printable(&status.answered_by), printable(reason))
        })
        .collect();
    if status.cluster_id.is_empty() {
        let next = match refusing.is_empty() {
            true => "There is no cluster yet: found one with `databroker cluster init`, on one node.".to_owned(),
            // It may have a cluster already.
            false => format!(
                "{} belongs to no cluster. Do not found one before its peers answer it.",
                printable(&status.answered_by)
            ),
        };
        return [vec![next], refusing].concat();
    }
    let mut lines = [vec![leader(status), stoppable(status)], refusing].concat();
    if !status.next_step.is_empty() {
        lines.push(format!("Next: {}.", printable(status.next_step.trim_end_matches('.'))));
    }
    // Where the name has a member, its data are not to be deleted, and a name is what people go by.
    let is_member = |name: &str| status.members.iter().any(|m| m.name == name && m.role() != Role::Waiting);
    let waiting: Vec<_> =
        status.retired.iter().filter(|retired| !retired.confirmed && !is_member(&retired.name)).collect();
    if !waiting.is_empty() {
        let names: Vec<_> =
            waiting.iter().map(|retired| format!("{} ({:016x})", printable(&retired.name), retired.node)).collect();
        lines.push(format!(
            "Removed, and not told yet: {}. Delete their data if they never come back.",
            names.join(", ")
        ));
    }
    lines
}

fn leader(status: &StatusReply) -> String {
    match status.leader.as_str() {
        "" => format!(
            "Nobody leads, as far as {} knows: nothing can be written until a majority of the voters is reachable.",
            printable(&status.answered_by)
        ),
        leader => format!("{} leads, in term {}.", printable(leader), status.term),
    }
}

fn stoppable(status: &StatusReply) -> String {
    let names: Vec<_> = status.members.iter().filter(|m| m.may_stop).map(|m| printable(&m.name)).collect();
    match names.as_slice() {
        [] => "No node may be stopped now: without it there would be no majority that has everything.".to_owned(),
        [one] => format!("{one} may be stopped."),
        [rest @ .., last] => format!("One of {} and {last} may be stopped.", rest.join(", ")),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusJson {
    cluster_id: String,
    answered_by: String,
    leader: String,
    term: u64,
    command_version: u32,
    shape_generation: u64,
    shape: Vec<ShapeJson>,
    members: Vec<MemberJson>,
    retired: Vec<RetiredJson>,
    // A string, as it is random over all 64 bits and many programs read numbers as floats. So are ids of nodes.
    server_version: String,
    latest_record_version: u64,
    next_step: String,
    refusing: Vec<RefusingJson>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusingJson {
    peer: String,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShapeJson {
    name: String,
    raft_address: String,
    grpc_address: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RetiredJson {
    name: String,
    node: String,
    confirmed: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberJson {
    name: String,
    node: String,
    role: &'static str,
    raft_address: String,
    grpc_address: String,
    reachable: bool,
    term: u64,
    committed_index: u64,
    applied_index: u64,
    lag_records: u64,
    lag_millis: u64,
    disk_bytes: u64,
    disk_bytes_free: u64,
    disk_full: bool,
    version: String,
    command_version: u32,
    caught_up: bool,
    may_stop: bool,
    clock_ahead_millis: i64,
}

impl From<&StatusReply> for StatusJson {
    fn from(status: &StatusReply) -> Self {
        let retired = status.retired.iter().map(|retired| RetiredJson {
            name: retired.name.clone(),
            node: format!("{:016x}", retired.node),
            confirmed: retired.confirmed,
        });
        let refusing = status.refusing.iter();
        let refusing = refusing.map(|it| RefusingJson { peer: it.peer.clone(), reason: it.reason.clone() });
        Self {
            cluster_id: status.cluster_id.clone(),
            answered_by: status.answered_by.clone(),
            leader: status.leader.clone(),
            term: status.term,
            command_version: status.command_version,
            shape_generation: status.shape_generation,
            shape: status.shape.iter().map(ShapeJson::from).collect(),
            members: status.members.iter().map(MemberJson::from).collect(),
            retired: retired.collect(),
            server_version: status.server_version.to_string(),
            latest_record_version: status.latest_record_version,
            next_step: status.next_step.clone(),
            refusing: refusing.collect(),
        }
    }
}

impl From<&ShapeMember> for ShapeJson {
    fn from(member: &ShapeMember) -> Self {
        Self {
            name: member.name.clone(),
            raft_address: member.raft_address.clone(),
            grpc_address: member.grpc_address.clone(),
        }
    }
}

impl From<&MemberStatus> for MemberJson {
    fn from(member: &MemberStatus) -> Self {
        Self {
            name: member.name.clone(),
            node: format!("{:016x}", member.node),
            role: role_name(member.role()),
            raft_address: member.raft_address.clone(),
            grpc_address: member.grpc_address.clone(),
            reachable: member.reachable,
            term: member.term,
            committed_index: member.committed_index,
            applied_index: member.applied_index,
            lag_records: member.lag_records,
            lag_millis: member.lag_millis,
            disk_bytes: member.disk_bytes,
            disk_bytes_free: member.disk_bytes_free,
            disk_full: member.disk_full,
            version: member.version.clone(),
            command_version: member.command_version,
            caught_up: member.caught_up,
            may_stop: member.may_stop,
            clock_ahead_millis: member.clock_ahead_millis,
        }
    }
}

#[cfg(test)]
mod tests {
    use databroker_proto::internal::RetiredMember;

    use super::*;

    fn member(name: &str, role: Role) -> MemberStatus {
        MemberStatus {
            name: name.into(),
            node: 0xabcd_ef01_2345_6789,
            role: role.into(),
            reachable: true,
            term: 7,
            committed_index: 120,
            applied_index: 118,
            disk_bytes: 3 << 20,
            disk_bytes_free: 5 << 30,
            version: "0.1.0".into(),
            command_version: 1,
            ..MemberStatus::default()
        }
    }

    fn three() -> StatusReply {
        let late = MemberStatus { reachable: false, lag_records: 40, lag_millis: 2500, ..member("c", Role::Voter) };
        let members = vec![
            MemberStatus { may_stop: true, ..member("a", Role::Leader) },
            MemberStatus { may_stop: true, ..member("b", Role::Voter) },
            late,
        ];
        StatusReply {
            cluster_id: "id".into(),
            answered_by: "b".into(),
            leader: "a".into(),
            term: 7,
            members,
            ..StatusReply::default()
        }
    }

    fn shown(status: &StatusReply, format: Format) -> String {
        let printed = crate::cli::tests::Printed::default();
        print(status, &mut Output::new(format, printed.clone())).unwrap();
        printed.text()
    }

    #[test]
    fn the_table_says_who_leads_who_is_behind_and_who_may_be_stopped() {
        let text = shown(&three(), Format::Table);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").filter(|c| !c.is_empty()).collect()).collect();
        let rows: Vec<Vec<&str>> = rows.into_iter().map(|row| row.into_iter().map(str::trim).collect()).collect();
        assert_eq!(rows[0], HEADER);
        assert_eq!(
            rows[1],
            ["a", "abcdef01", "leader", "7", "120", "118", "-", "3.0 MiB (5.0 GiB free)", "0.1.0", "1", "yes"]
        );
        assert_eq!(
            rows[3][2..],
            ["voter (gone)", "7", "120", "118", "40 (2s)", "3.0 MiB (5.0 GiB free)", "0.1.0", "1", "no"]
        );
        assert_eq!(rows[4..], [vec!["a leads, in term 7."], vec!["One of a and b may be stopped."]]);
    }

    #[test]
    fn who_was_never_heard_is_not_said_to_be_behind() {
        let heard = MemberStatus { lag_records: 40, lag_millis: 2500, ..member("c", Role::Voter) };
        assert_eq!(lag(&heard), "40 (2s)");
        assert_eq!(lag(&MemberStatus { version: String::new(), ..heard }), "-");
    }

    #[test]
    fn the_summary_tells_of_what_is_missing() {
        let founded = summary(&StatusReply::default());
        assert!(founded[0].contains("cluster init"), "{founded:?}");
        let refusing = vec![RefusingPeer { peer: "b".into(), reason: "it has another secret".into() }];
        let alone = StatusReply { answered_by: "a".into(), refusing: refusing.clone(), ..StatusReply::default() };
        let lines = summary(&alone);
        assert!(!lines[0].contains("cluster init"), "{lines:?}");
        assert_eq!(lines[1], "b refuses a: it has another secret.");
        let lines = summary(&StatusReply { refusing, ..three() });
        assert_eq!(lines[2], "b refuses b: it has another secret.");
        let mut status = three();
        status.leader.clear();
        status.members.iter_mut().for_each(|member| member.may_stop = false);
        status.next_step = "wait for d to catch up".into();
        status.retired = vec![RetiredMember { name: "e".into(), node: 1, confirmed: false }];
        let lines = summary(&status);
        assert!(lines[0].starts_with("Nobody leads, as far as b knows"), "{lines:?}");
        assert!(lines[1].starts_with("No node may be stopped"), "{lines:?}");
        assert_eq!(lines[2], "Next: wait for d to catch up.");
        assert!(lines[3].contains("not told yet: e (0000000000000001)."), "{lines:?}");
        // The member of that name would be taken for the one that was removed.
        status.retired[0].name = "a".into();
        assert_eq!(summary(&status).len(), 3, "{lines:?}");
    }

    #[test]
    fn programs_get_the_leaders_name_and_the_members() {
        let value: serde_json::Value = serde_json::from_str(&shown(&three(), Format::Json)).unwrap();
        assert_eq!(value["leader"], "a");
        assert_eq!(value["members"][2]["lagRecords"], 40);
        assert_eq!(value["members"][0]["node"], "abcdef0123456789");
        assert_eq!(value["members"].as_array().unwrap().len(), 3);
    }
}
