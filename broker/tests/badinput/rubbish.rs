//! The table of malformed requests, and what is no request at all.

use std::time::{Duration, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use databroker::jwt::{SharedKey, Signer};
use databroker_proto::{
    EncodedRecord, Record,
    databroker::{
        AcquireLeaseRequest, GetOptionsRequest, Options, PatchRequest, PutRequest, QueryRequest, SetOptionsRequest,
        SyncLatestRequest, SyncRequest,
    },
    registry::{RegisterRequest, Service},
};
use prost::Message;
use prost_types::{Any, FieldMask, Struct, Timestamp, Value, value::Kind};
use rand::{Rng as _, RngExt as _, rngs::StdRng};
use tonic::{
    Code,
    metadata::{Ascii, MetadataValue},
};

use super::{
    raw::{Answer, STREAM_READ},
    support::{Broker, PATIENCE},
};

pub const EMPTY: Bytes = Bytes::new();

/// What an HTTP/2 client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Every method that asks for a token.
pub const METHODS: &[&str] = &[
    "/databroker.DataBrokerService/AcquireLease",
    "/databroker.DataBrokerService/Get",
    "/databroker.DataBrokerService/GetOptions",
    "/databroker.DataBrokerService/ListTypes",
    "/databroker.DataBrokerService/Patch",
    "/databroker.DataBrokerService/Put",
    "/databroker.DataBrokerService/Query",
    "/databroker.DataBrokerService/ReleaseLease",
    "/databroker.DataBrokerService/RenewLease",
    "/databroker.DataBrokerService/ServerInfo",
    "/databroker.DataBrokerService/SetOptions",
    "/databroker.DataBrokerService/Sync",
    "/databroker.DataBrokerService/SyncLatest",
    "/databroker.CheckpointService/GetCheckpoint",
    "/databroker.CheckpointService/SetCheckpoint",
    "/registry.Registry/List",
    "/registry.Registry/Report",
    "/registry.Registry/Watch",
];

/// Those that do not. Clear is not sent rubbish: every message that decodes empties the store.
const OPEN_METHODS: &[&str] = &[
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/databroker.DataBrokerService/NoSuchMethod",
];

const PUT: &str = "/databroker.DataBrokerService/Put";
const PATCH: &str = "/databroker.DataBrokerService/Patch";
const QUERY: &str = "/databroker.DataBrokerService/Query";
const SYNC: &str = "/databroker.DataBrokerService/Sync";
const TYPE: &str = "type.googleapis.com/test.Test";
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";
const ANY: &str = "type.googleapis.com/google.protobuf.Any";

/// Far deeper than any decoder's limit, and than any stack if there were none.
const DEEP: usize = 10_000;

const MANY: usize = 100_000;

const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// One malformed request.
pub struct Case {
    pub name: &'static str,
    pub method: &'static str,
    pub message: Bytes,
    /// Empty: whatever a server that understood nothing may say.
    pub allowed: &'static [Code],
}

impl Case {
    /// How long a stream may say nothing before it counts as open: a while where it must end.
    pub fn quiet_max(&self) -> Duration {
        if self.allowed.is_empty() { STREAM_READ } else { PATIENCE }
    }

    /// What does not decode is INTERNAL in every gRPC implementation. CANCELLED makes a client stop for ever, UNKNOWN and
    /// a broken connection say nothing.
    pub fn allows(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Code(code, _) if self.allowed.is_empty() => {
                !matches!(code, Code::Cancelled | Code::Unknown | Code::DataLoss | Code::DeadlineExceeded)
            }
            Answer::Code(code, _) => self.allowed.contains(code),
            Answer::Open => self.allowed.is_empty(),
            Answer::Broken(_) => false,
        }
    }
}

/// Everything, in an order that the seed does not change.
pub fn cases(server_version: u64, random: &mut StdRng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, message) in undecodable(random) {
        for method in METHODS.iter().chain(OPEN_METHODS) {
            cases.push(Case { name, method, message: message.clone(), allowed: &[] });
        }
    }
    cases.extend(puts());
    cases.extend(patches());
    cases.extend(queries());
    cases.extend(numbers(server_version));
    cases
}

/// Messages that are wrong for every method.
fn undecodable(random: &mut StdRng) -> Vec<(&'static str, Bytes)> {
    let mut found: Vec<(&'static str, Bytes)> = vec![
        ("field number 0", Bytes::from_static(&[0, 0])),
        ("half a varint", Bytes::from_static(&[0x80])),
        ("a varint without end", Bytes::from_static(&[0xff; 11])),
        ("a length beyond the end", Bytes::from_static(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("a length of 2^64-1", Bytes::from_static(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])),
        ("wire type 6", Bytes::from_static(&[0x0e])),
        ("wire type 7", Bytes::from_static(&[0x0f])),
        ("groups without end", Bytes::from(vec![0x0b; MANY])),
        ("the end of no group", Bytes::from_static(&[0x0c])),
        ("-1 in every field", (1..=7).flat_map(|field| varint_field(field, u64::MAX)).collect()),
        ("not UTF-8 in every field", (1..=7).flat_map(|field| bytes_field(field, &[0xff, 0xfe, 0xc0])).collect()),
        ("100,000 unknown fields", (0..MANY).flat_map(|_| varint_field(536_870_911, 1)).collect()),
    ];
    for field in 1..=6 {
        found.push(("10,000 messages inside each other", nested(DEEP, |inner| bytes_field(field, inner))));
        found.push(("100,000 empty values of a field", (0..MANY).flat_map(|_| bytes_field(field, &[])).collect()));
    }
    for length in [7, 100, 5_000, 1 << 20] {
        let mut noise = vec![0; length];
        random.fill_bytes(&mut noise);
        found.push(("noise", noise.into()));
    }
    found
}

fn puts() -> Vec<Case> {
    let put = |records| PutRequest { records }.encode_to_vec().into();
    let one = |record: Record| put(vec![EncodedRecord::from(record)]);
    let case = |name, message, allowed| Case { name, method: PUT, message, allowed };
    let valid_or_refused: &[Code] = &[Code::Ok, Code::InvalidArgument, Code::Internal];
    vec![
        case("a record that does not decode", put(vec![EncodedRecord::from_bytes(vec![0x22, 0x7f, 1])]), REFUSED),
        case(
            "a record with text that is not UTF-8",
            put(vec![EncodedRecord::from_bytes(vec![0x12, 1, 0xff])]),
            REFUSED,
        ),
        case("an id of 1 MiB", one(record(&"i".repeat(1 << 20), Any::default())), valid_or_refused),
        case("a type of NULs", one(Record { r#type: "\0".repeat(1_000), ..Record::default() }), valid_or_refused),
        case("Any in Any, 10,000 deep", one(record("any", deep_any())), valid_or_refused),
        case("a Struct 10,000 deep", one(record("struct", any(STRUCT, deep_struct()))), valid_or_refused),
        case("a Struct 40 deep", one(record("shallow", any(STRUCT, struct_bytes(40)))), valid_or_refused),
        case("data that is not of its type", one(record("noise", any(TYPE, vec![0xff; 100]))), valid_or_refused),
        case("a type URL of slashes", one(record("slashes", any(&"/".repeat(1_000), vec![]))), valid_or_refused),
        case("times out of range", one(out_of_range()), valid_or_refused),
        case("more than the greatest message", vec![0x0a; MESSAGE_BYTES_MAX + 1].into(), TOO_LARGE),
        case("100,000 empty records", put(vec![EncodedRecord::default(); MANY]), valid_or_refused),
    ]
}

fn patches() -> Vec<Case> {
    let patch = |paths: Vec<String>| {
        let data = any(TYPE, vec![0x0a, 1, b'x']);
        let records = vec![EncodedRecord::from(record("patched", data))];
        PatchRequest { records, field_mask: Some(FieldMask { paths }) }.encode_to_vec().into()
    };
    let case = |name, method, message, allowed| Case { name, method, message, allowed };
    let stored = PutRequest { records: vec![record("patched", any(TYPE, vec![0x0a, 1, b'y'])).into()] };
    vec![
        case("the record that is patched next", PUT, stored.encode_to_vec().into(), &[Code::Ok]),
        case("100,000 unknown paths", PATCH, patch((0..MANY).map(|n| format!("field_{n}")).collect()), REFUSED),
        case(
            "one path 100,000 times",
            PATCH,
            patch(vec!["string_field".into(); MANY]),
            &[Code::Ok, Code::InvalidArgument],
        ),
        case("a path of 10,000 parts", PATCH, patch(vec![vec!["proto_field"; DEEP].join(".")]), REFUSED),
        case("a path of dots", PATCH, patch(vec![".".repeat(DEEP)]), REFUSED),
        case("an empty path", PATCH, patch(vec![String::new()]), REFUSED),
        case("a path into text", PATCH, patch(vec!["string_field.x".into()]), REFUSED),
        case("a path of 1 MiB", PATCH, patch(vec!["x".repeat(1 << 20)]), REFUSED),
    ]
}

fn queries() -> Vec<Case> {
    let query =
        |request: QueryRequest| -> Bytes { QueryRequest { r#type: TYPE.into(), ..request }.encode_to_vec().into() };
    let filter = |filter| query(QueryRequest { filter: Some(filter), limit: 10, ..QueryRequest::default() });
    let text = |query: String| QueryRequest { query, limit: 10, ..QueryRequest::default() };
    let case = |name, message, allowed| Case { name, method: QUERY, message, allowed };
    let answered: &[Code] = &[Code::Ok, Code::InvalidArgument];
    let bad = &[Code::InvalidArgument];
    let list = |count| list((0..count).map(|n| string(&n.to_string())).collect());
    vec![
        case("a negative offset", query(QueryRequest { offset: -1, ..QueryRequest::default() }), bad),
        case("a negative limit", query(QueryRequest { limit: -1, ..QueryRequest::default() }), bad),
        case(
            "the least numbers",
            query(QueryRequest { offset: i64::MIN, limit: i64::MIN, ..QueryRequest::default() }),
            bad,
        ),
        case(
            "the greatest numbers",
            query(QueryRequest { offset: i64::MAX, limit: i64::MAX, ..QueryRequest::default() }),
            &[Code::Ok],
        ),
        case("a filter 10,000 deep", query_with_raw_filter(&deep_struct()), REFUSED),
        case("a filter 30 deep", filter(struct_of("$not", nested_not(30))), answered),
        case("a filter of 100,000 values", filter(struct_of("id", list(MANY))), answered),
        case(
            "100,000 conditions",
            filter(Struct { fields: (0..MANY).map(|n| (format!("f{n}"), string("x"))).collect() }),
            answered,
        ),
        case("a key of 100,000 dots", filter(struct_of(&".".repeat(MANY), string("x"))), answered),
        case("an operator that is none", filter(struct_of("id", object("$nope", string("x")))), answered),
        case("$and of text", filter(struct_of("$and", string("x"))), bad),
        case("NaN", filter(struct_of("id", Value { kind: Some(Kind::NumberValue(f64::NAN)) })), answered),
        case("a value that is none", filter(struct_of("id", Value { kind: None })), answered),
        case("an address that is none", filter(struct_of("$index", string(&"9".repeat(MANY)))), answered),
        case("a text of 1 MiB", query(text("İ".repeat(1 << 19))), answered),
        case(
            "a text found in deep data",
            Bytes::from(QueryRequest { limit: 9, query: "x".into(), ..QueryRequest::default() }.encode_to_vec()),
            &[Code::Ok],
        ),
    ]
}

fn numbers(server_version: u64) -> Vec<Case> {
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let lease = |seconds, nanos| AcquireLeaseRequest { name: "n".into(), duration: duration(seconds, nanos) };
    let options = |options| SetOptionsRequest { r#type: "rubbish".into(), options: Some(options) };
    let ttl = |seconds, nanos| options(Options { ttl: duration(seconds, nanos), ..Options::default() });
    let sync = |server_version, record_version| SyncRequest {
        server_version,
        record_version,
        wait: Some(false),
        ..SyncRequest::default()
    };
    let set = "/databroker.DataBrokerService/SetOptions";
    let acquire = "/databroker.DataBrokerService/AcquireLease";
    let report = "/registry.Registry/Report";
    let sane: &[Code] = &[Code::Ok, Code::InvalidArgument, Code::AlreadyExists];
    let fields = (0..1_000).map(|n| format!("f{n}")).collect();
    let services = |count, kind, endpoint: &str| RegisterRequest {
        services: vec![Service { kind, endpoint: endpoint.into() }; count],
        ..RegisterRequest::default()
    };
    let long = || "t".repeat(1 << 20);
    vec![
        of(
            "a stream of a type of a megabyte",
            SYNC,
            &SyncRequest { r#type: long(), wait: Some(true), ..sync(server_version, 0) },
            &[Code::InvalidArgument],
        ),
        of(
            "all records of a type of a megabyte",
            "/databroker.DataBrokerService/SyncLatest",
            &SyncLatestRequest { r#type: long() },
            &[Code::InvalidArgument],
        ),
        of("a lease for ever", acquire, &lease(i64::MAX, i32::MAX), sane),
        of("a lease into the past", acquire, &lease(i64::MIN, i32::MIN), sane),
        of("a ttl for ever", set, &ttl(i64::MAX, i32::MAX), sane),
        of("a ttl into the past", set, &ttl(i64::MIN, i32::MIN), sane),
        of("a capacity of 2^64-1", set, &options(Options { capacity: Some(u64::MAX), ..Options::default() }), sane),
        of("1,000 indexed fields", set, &options(Options { indexable_fields: fields, ..Options::default() }), sane),
        of("no options at all", set, &SetOptionsRequest { r#type: "rubbish".into(), options: None }, &[Code::Ok]),
        of("options of no type", set, &SetOptionsRequest::default(), &[Code::InvalidArgument]),
        of(
            "options asked for no type",
            "/databroker.DataBrokerService/GetOptions",
            &GetOptionsRequest::default(),
            &[Code::InvalidArgument],
        ),
        of("server version 0", SYNC, &sync(0, 0), &[Code::Aborted]),
        of("server version 2^64-1", SYNC, &sync(u64::MAX, 0), &[Code::Aborted]),
        of("record version 2^64-1", SYNC, &sync(server_version, u64::MAX), &[Code::Ok]),
        of("a service of no kind", report, &services(1, i32::MIN, ""), sane),
        of("an endpoint of 1 MiB", report, &services(1, 1, &"e".repeat(1 << 20)), sane),
        of("100,000 services", report, &services(MANY, 2, "http://127.0.0.1"), sane),
    ]
}

/// Refused by whoever looks first: the decoder or the check behind it.
const REFUSED: &[Code] = &[Code::InvalidArgument, Code::Internal];

const TOO_LARGE: &[Code] = &[Code::ResourceExhausted];

fn of(name: &'static str, method: &'static str, message: &impl Message, allowed: &'static [Code]) -> Case {
    Case { name, method, message: message.encode_to_vec().into(), allowed }
}

fn record(id: &str, data: Any) -> Record {
    Record { r#type: TYPE.to_owned(), id: id.to_owned(), data: Some(data), ..Record::default() }
}

fn out_of_range() -> Record {
    let modified_at = Some(Timestamp { seconds: i64::MAX, nanos: i32::MIN });
    Record { modified_at, ..record("times", any(TYPE, vec![])) }
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value }
}

fn deep_any() -> Any {
    // Each level holds all the deeper ones, so the type URL is as short as may be: 10,000 levels are then about 500 KiB.
    (0..DEEP).fold(any(STRUCT, vec![]), |inner, _| any(ANY, inner.encode_to_vec()))
}

fn deep_struct() -> Vec<u8> {
    struct_bytes(DEEP)
}

/// `{"$and": {"$and": …}}`, built from the inside because an encoder would recurse.
fn struct_bytes(depth: usize) -> Vec<u8> {
    let inside = nested(depth, |inner| {
        let entry = [bytes_field(1, b"$and"), bytes_field(2, &bytes_field(5, inner))].concat();
        bytes_field(1, &entry)
    });
    inside.to_vec()
}

fn query_with_raw_filter(filter: &[u8]) -> Bytes {
    [bytes_field(1, TYPE.as_bytes()), bytes_field(5, filter)].concat().into()
}

fn nested_not(depth: usize) -> Value {
    (0..depth).fold(object("id", string("x")), |inner, _| object("$not", inner))
}

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(prost_types::ListValue { values })) }
}

fn struct_of(key: &str, value: Value) -> Struct {
    Struct { fields: [(key.to_owned(), value)].into() }
}

fn object(key: &str, value: Value) -> Value {
    Value { kind: Some(Kind::StructValue(struct_of(key, value))) }
}

fn nested(depth: usize, wrap: impl Fn(&[u8]) -> Vec<u8>) -> Bytes {
    (0..depth).fold(Vec::new(), |inner, _| wrap(&inner)).into()
}

fn varint_field(field: u32, value: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    prost::encoding::uint64::encode(field, &value, &mut out);
    out.to_vec()
}

fn bytes_field(field: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 8);
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out
}

/// Tokens that must open nothing; `None` sends none.
pub fn tokens(broker: &Broker) -> Vec<(&'static str, Option<MetadataValue<Ascii>>)> {
    let ours = broker.token().0;
    let ours = ours.to_str().unwrap();
    let (head, signature) = ours.rsplit_once('.').unwrap();
    let (_, claims) = head.split_once('.').unwrap();
    let foreign = Signer::new(&SharedKey::from_bytes([7; 32]));
    let hour_ago = SystemTime::now() - Duration::from_secs(2 * 60 * 60);
    let parsed = |text: String| Some(text.parse().unwrap());
    vec![
        ("no token", None),
        ("an empty token", parsed(String::new())),
        ("dots", parsed("..".into())),
        ("no signature", parsed(format!("{head}."))),
        // {"alg":"none"}
        ("algorithm none", parsed(format!("eyJhbGciOiJub25lIn0.{claims}."))),
        // {"alg":"HS512","typ":"JWT"}
        ("another algorithm", parsed(format!("eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9.{claims}.{signature}"))),
        ("another key", parsed(foreign.sign(SystemTime::now()).unwrap())),
        ("an old token of another key", parsed(foreign.sign(hour_ago).unwrap())),
        ("a long token", parsed("a".repeat(4_000))),
    ]
}

/// What comes on a connection instead of HTTP/2.
pub fn connections(random: &mut StdRng) -> Vec<(&'static str, Vec<u8>)> {
    let mut noise = vec![0; 1 << 16];
    random.fill_bytes(&mut noise);
    let settings = frame(0x4, 0, 0, &[]);
    let greeted = [PREFACE, &settings].concat();
    let after = |frames: Vec<u8>| [greeted.clone(), frames].concat();
    let stream = |n: u32| 2 * n + 1;
    let cut = random.random_range(1..greeted.len());
    vec![
        ("noise", noise.clone()),
        ("noise after the preface", [PREFACE, &noise].concat()),
        ("noise after the greeting", after(noise)),
        ("half a greeting", greeted[..cut].to_vec()),
        (
            "HTTP/1.1",
            b"POST /databroker.DataBrokerService/Put HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
                .to_vec(),
        ),
        ("a TLS hello", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("a frame of 16 MiB", after(vec![0xff, 0xff, 0xff, 0x0, 0, 0, 0, 0, 1])),
        ("headers that never end", after(endless_headers())),
        ("100,000 pings", after(frame(0x6, 0, 0, &[0; 8]).repeat(MANY))),
        ("100,000 settings", after(frame(0x4, 0, 0, &[0, 3, 0, 0, 0, 1]).repeat(MANY))),
        ("10,000 streams reset at once", after((0..10_000).flat_map(|n| reset_stream(stream(n))).collect())),
        ("a window that overflows", after(frame(0x8, 0, 0, &0x7fff_ffff_u32.to_be_bytes()).repeat(3))),
        ("data for no stream", after(frame(0x0, 0, 99, &[0; 16_000]).repeat(100))),
        ("100,000 empty data frames", after([open_stream(1), frame(0x0, 0, 1, &[]).repeat(MANY)].concat())),
    ]
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + payload.len());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.put_u32(stream);
    out.extend_from_slice(payload);
    out
}

/// `:method POST, :scheme http, :path /` from the static table, with END_HEADERS.
fn open_stream(stream: u32) -> Vec<u8> {
    frame(0x1, 0x4, stream, &[0x83, 0x86, 0x84])
}

fn reset_stream(stream: u32) -> Vec<u8> {
    [open_stream(stream), frame(0x3, 0, stream, &8_u32.to_be_bytes())].concat()
}

/// HEADERS without an end, then 2,000 CONTINUATIONs of 16 kB: 32 MB that a careless server collects.
fn endless_headers() -> Vec<u8> {
    let literal =
        [&[0x00, 0x7f, 0x00], b"a".repeat(127).as_slice(), &[0x7f, 0x00], b"b".repeat(127).as_slice()].concat();
    let block: Vec<u8> = literal.repeat(60);
    [frame(0x1, 0, 1, &[0x83, 0x86, 0x84]), frame(0x9, 0, 1, &block).repeat(2_000)].concat()
}
