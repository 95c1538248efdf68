//! Requests as bytes, encoded once before the clock starts: a call then costs the client one copy and the writing of an
//! id. Not here: sending them.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use databroker_proto::{EncodedRecord, Record, databroker as pb};
use prost::Message;
use prost_types::{Any, ListValue, Struct, Value, value::Kind};

/// Stands for an id in a template. Ids have its length, so the lengths in the encoded message stay true.
const PLACEHOLDER: &str = "_placeholder-id_";
const ID_BYTES: usize = PLACEHOLDER.len();

/// The type URL of the payload: a type that every server knows, and that none looks into.
const PAYLOAD_TYPE_URL: &str = "type.googleapis.com/google.protobuf.StringValue";

/// A bijection on `u64` (the finaliser of splitmix64): distinct numbers give distinct ids, and neighbours in number are
/// far apart in the store, as real ids are.
fn scramble(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// A cheap source of record numbers below a bound; the seed makes a run repeatable.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    state: u64,
    bound: u64,
}

impl Numbers {
    /// Numbers in `0..bound`; a bound of zero counts as one.
    pub(super) fn new(seed: u64, bound: u64) -> Self {
        Self { state: scramble(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)), bound: bound.max(1) }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.state) % self.bound
    }
}

/// An encoded message with the places where ids go.
#[derive(Clone, Debug)]
pub(super) struct Template {
    bytes: Bytes,
    ids_at: Vec<usize>,
}

impl Template {
    /// A Put of `count` records of about `size` encoded bytes each (no less than their type, id and type URL take).
    pub(super) fn put(record_type: &str, size: usize, count: usize) -> Self {
        let record = EncodedRecord::from(record(record_type, PLACEHOLDER, size));
        Self::of(&pb::PutRequest { records: vec![record; count] })
    }

    /// A Get.
    pub(super) fn get(record_type: &str) -> Self {
        Self::of(&pb::GetRequest { r#type: record_type.to_owned(), id: PLACEHOLDER.to_owned() })
    }

    /// The query that authorising a request makes: by id or by address, first hit only.
    pub(super) fn authorize_query(record_type: &str) -> Self {
        let equals = |field: &str| object([(field, text(PLACEHOLDER))]);
        let either = list([equals("id"), equals("$index")].map(|fields| Kind::StructValue(fields).into()));
        Self::of(&pb::QueryRequest {
            r#type: record_type.to_owned(),
            filter: Some(object([("$or", either)])),
            limit: 1,
            ..Default::default()
        })
    }

    /// A Patch without a mask: it changes nothing but version and time. Its data are not looked at, but some servers
    /// want them to be of the stored type.
    pub(super) fn touch(record_type: &str) -> Self {
        let record = record(record_type, PLACEHOLDER, 0);
        Self::of(&pb::PatchRequest { records: vec![record.into()], field_mask: None })
    }

    fn of(message: &impl Message) -> Self {
        let bytes = Bytes::from(message.encode_to_vec());
        let is_placeholder = |window: &[u8]| window == PLACEHOLDER.as_bytes();
        let ids_at = bytes.windows(ID_BYTES).enumerate().filter(|(_, w)| is_placeholder(w)).map(|(at, _)| at).collect();
        Self { bytes, ids_at }
    }

    /// The message with the same id in every place.
    pub(super) fn about(&self, number: u64) -> Bytes {
        self.each(|| number)
    }

    /// The message with another id in each place.
    pub(super) fn each(&self, mut number: impl FnMut() -> u64) -> Bytes {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        for &at in &self.ids_at {
            write_id(&mut bytes[at..at + ID_BYTES], number());
        }
        bytes.freeze()
    }
}

fn write_id(place: &mut [u8], number: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = scramble(number);
    for byte in place.iter_mut().rev() {
        *byte = DIGITS[(rest & 15) as usize];
        rest >>= 4;
    }
}

fn record(record_type: &str, id: &str, size: usize) -> Record {
    let with_payload = |length: usize| Record {
        r#type: record_type.to_owned(),
        id: id.to_owned(),
        data: Some(Any { type_url: PAYLOAD_TYPE_URL.to_owned(), value: "x".repeat(length).encode_to_vec() }),
        ..Default::default()
    };
    // The lengths in front grow with what they count, so the first guess is a few bytes off.
    let guess = size.saturating_sub(with_payload(0).encoded_len());
    let excess = with_payload(guess).encoded_len().saturating_sub(size);
    with_payload(guess.saturating_sub(excess))
}

/// A user as a directory sync stores it.
pub(super) fn directory_user(n: u64, groups: u64, revision: u64) -> EncodedRecord {
    let group = |step: u64| text(&format!("group-{}", scramble(n.wrapping_add(step << 32)) % groups.max(1)));
    let id = format!("user-{n}");
    let fields = object([
        ("id", text(&id)),
        ("display_name", text(&format!("User Number {n}, revision {revision}"))),
        ("email", text(&format!("user-{n}@example.com"))),
        ("group_ids", list([group(1), group(2), group(3)])),
    ]);
    struct_record(USER_TYPE, id, &fields)
}

/// A group as a directory sync stores it.
pub(super) fn directory_group(n: u64) -> EncodedRecord {
    let id = format!("group-{n}");
    let fields = object([
        ("id", text(&id)),
        ("name", text(&format!("Group Number {n}"))),
        ("email", text(&format!("group-{n}@example.com"))),
    ]);
    struct_record(GROUP_TYPE, id, &fields)
}

/// The type of directory users.
pub(super) const USER_TYPE: &str = "pomerium.io/DirectoryUser";
/// The type of directory groups.
pub(super) const GROUP_TYPE: &str = "pomerium.io/DirectoryGroup";

fn struct_record(record_type: &str, id: String, fields: &Struct) -> EncodedRecord {
    let type_url = "type.googleapis.com/google.protobuf.Struct".to_owned();
    let data = Some(Any { type_url, value: fields.encode_to_vec() });
    Record { r#type: record_type.to_owned(), id, data, ..Default::default() }.into()
}

/// A request to delete a record, whatever it holds.
pub(super) fn deletion(record_type: &str, id: &str) -> EncodedRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deleted_at = Some(prost_types::Timestamp { seconds: now.as_secs() as i64, nanos: 0 });
    Record { r#type: record_type.to_owned(), id: id.to_owned(), deleted_at, ..Default::default() }.into()
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn list<const N: usize>(values: [Value; N]) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.into() })) }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> String {
        format!("{:016x}", scramble(number))
    }

    #[test]
    fn a_template_is_the_message_with_other_ids() {
        let template = Template::put("some/type", 200, 3);
        let mut number = 6;
        let bytes = template.each(|| {
            number += 1;
            number
        });
        let request = pb::PutRequest::decode(bytes).unwrap();
        let records: Vec<Record> = request.records.iter().map(|record| record.to_record().unwrap()).collect();
        assert_eq!(records.iter().map(|record| record.id.clone()).collect::<Vec<_>>(), [id(7), id(8), id(9)]);
        assert!(
            records.iter().all(|record| record.r#type == "some/type" && (199..=201).contains(&record.encoded_len()))
        );
    }

    #[test]
    fn the_authorize_query_asks_for_one_id_in_both_places() {
        let template = Template::authorize_query("t");
        assert_eq!(template.ids_at.len(), 2);
        let request = pb::QueryRequest::decode(template.about(5)).unwrap();
        assert_eq!(request.limit, 1);
        assert_eq!(format!("{:?}", request.filter).matches(&id(5)).count(), 2);
    }

    #[test]
    fn numbers_stay_below_their_bound_and_ids_differ() {
        let mut numbers = Numbers::new(1, 10);
        assert!((0..1000).all(|_| numbers.next() < 10));
        let ids: std::collections::HashSet<String> = (0..10_000).map(id).collect();
        assert_eq!(ids.len(), 10_000);
    }
}
