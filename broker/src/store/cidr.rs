//! The address index: which records speak of which networks, and which of them an address belongs to.
//!
//! A record takes part if its data is a Struct (or a Value that is one, or either packed into further Anys) with
//! `{"$index": {"cidr": "10.0.0.0/8"}}`. Addresses and networks are read as Go's `netip` reads them: no zones, no
//! leading zeros, a bare address is no network, and `::ffff:1.2.3.4` is not `1.2.3.4`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::fields::{Any, Field, Fields, Payload};

/// The network a record speaks of; `any` is its encoded `google.protobuf.Any`. Bits after the prefix are cleared.
pub fn cidr_of(any: &[u8]) -> Option<IpNet> {
    let any = Any::unwrap(any)?;
    match any.message_name() {
        "google.protobuf.Struct" => cidr_in(any.value),
        "google.protobuf.Value" => cidr_in(json::members(any.value)?),
        _ => None,
    }
}

fn cidr_in(members: &[u8]) -> Option<IpNet> {
    let index = json::members(json::member(members, "$index")?)?;
    network(json::text(json::member(index, "cidr")?)?)
}

/// A network in prefix notation.
fn network(value: &str) -> Option<IpNet> {
    let (address, length) = value.rsplit_once('/')?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (length.len() > 1 && length.starts_with('0')) {
        return None;
    }
    let network = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    Some(network.trunc())
}

/// What a lookup may ask for: a network, or a single address.
fn sought(value: &str) -> Option<IpNet> {
    network(value).or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))
}

/// JSON values on the wire, read without decoding what is not asked for.
mod json {
    use super::{Field, Fields, Payload};
    use crate::store::fields;

    const TEXT: u32 = 3;
    const STRUCT: u32 = 5;
    const LAST_MEMBER: u32 = 6;

    /// The encoded Value of a Struct's member; the last one of that name counts.
    pub(super) fn member<'a>(members: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let mut found = None;
        for field in Fields::of(members) {
            if let Field { number: 1, payload: Payload::Bytes(entry), .. } = field.ok()?
                && last(entry, 1)?.unwrap_or_default() == name.as_bytes()
            {
                found = Some(last(entry, 2)?.unwrap_or_default());
            }
        }
        found
    }

    /// The encoded Struct, if the Value is one.
    pub(super) fn members(value: &[u8]) -> Option<&[u8]> {
        only(value, STRUCT)
    }

    /// The text, if the Value is one.
    pub(super) fn text(value: &[u8]) -> Option<&str> {
        fields::text(only(value, TEXT)?).ok()
    }

    /// A Value has one member: the last that was set.
    fn only(value: &[u8], wanted: u32) -> Option<&[u8]> {
        let mut found = None;
        for field in Fields::of(value) {
            match field.ok()? {
                Field { number, payload: Payload::Bytes(bytes), .. } if number == wanted => found = Some(bytes),
                Field { number: 1..=LAST_MEMBER, .. } => found = None,
                _ => {}
            }
        }
        found
    }

    /// `None`: broken framing. `Some(None)`: no such field.
    fn last(message: &[u8], wanted: u32) -> Option<Option<&[u8]>> {
        let mut found = None;
        for field in Fields::of(message) {
            match field.ok()? {
                Field { number, payload: Payload::Bytes(bytes), .. } if number == wanted => found = Some(bytes),
                _ => {}
            }
        }
        Some(found)
    }
}

/// All records with a network, by type and network.
#[derive(Clone, Default)]
pub struct CidrTable {
    types: BTreeMap<String, JointPrefixMap<IpNet, BTreeSet<String>>>,
    /// Which types have a network: the smallest over all types must not take a look at each of them.
    networks: JointPrefixMap<IpNet, BTreeSet<String>>,
}

impl CidrTable {
    /// Notes that a record speaks of a network.
    pub fn insert(&mut self, record_type: &str, id: &str, network: IpNet) {
        let network = network.trunc();
        let networks = self.types.entry(record_type.to_owned()).or_default();
        networks.entry(network).or_default().insert(id.to_owned());
        self.networks.entry(network).or_default().insert(record_type.to_owned());
    }

    /// Forgets what [`CidrTable::insert`] noted; nothing happens if it did not.
    pub fn remove(&mut self, record_type: &str, id: &str, network: IpNet) {
        let network = network.trunc();
        let Some(networks) = self.types.get_mut(record_type) else { return };
        let Some(ids) = networks.get_mut(&network) else { return };
        ids.remove(id);
        if !ids.is_empty() {
            return;
        }
        networks.remove(&network);
        if networks.is_empty() {
            self.types.remove(record_type);
        }
        let Some(types) = self.networks.get_mut(&network) else { return };
        types.remove(record_type);
        if types.is_empty() {
            self.networks.remove(&network);
        }
    }

    /// The smallest network around `value` (an address or a network as text; anything else is in none) that a record of
    /// the type speaks of; of type `""`: a record of any type.
    pub fn smallest(&self, record_type: &str, value: &str) -> Option<IpNet> {
        let networks = if record_type.is_empty() { &self.networks } else { self.types.get(record_type)? };
        Some(networks.get_lpm(&sought(value)?)?.0)
    }

    /// The records that speak of exactly this network, as (type, id), sorted; of type `""`: those of all types.
    pub fn records<'a>(&'a self, record_type: &'a str, network: IpNet) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = if record_type.is_empty() { self.networks.get(&network) } else { None };
        let one = (!record_type.is_empty()).then_some(record_type);
        all.into_iter().flatten().map(String::as_str).chain(one).flat_map(move |record_type| {
            let ids = self.types.get(record_type).and_then(|networks| networks.get(&network));
            ids.into_iter().flatten().map(move |id| (record_type, id.as_str()))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::store::fields::WRAPPERS_MAX;
    use crate::store::samples::{self, Random, any, pack};

    impl CidrTable {
        fn lookup(&self, record_type: &str, value: &str) -> Vec<(String, String)> {
            let found = self.smallest(record_type, value).into_iter().flat_map(|net| self.records(record_type, net));
            found.map(|(record_type, id)| (record_type.to_owned(), id.to_owned())).collect()
        }
    }

    fn of(cidr: serde_json::Value) -> Option<String> {
        cidr_of(&any("google.protobuf.Struct", json!({"a": 1, "$index": {"b": [], "cidr": cidr}})))
            .map(|net| net.to_string())
    }

    #[test]
    fn networks_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("1.2.3.4/32", Some("1.2.3.4/32")),
            ("2001:db8::1/32", Some("2001:db8::/32")),
            ("::/0", Some("::/0")),
            ("::ffff:1.2.3.4/128", Some("::ffff:1.2.3.4/128")),
            ("1.2.3.4", None),
            ("1.2.3.4/33", None),
            ("1.2.3.4/", None),
            ("1.2.3.4/+8", None),
            ("1.2.3.4/-1", None),
            ("1.2.3.4/08", None),
            ("1.2.3.4/256", None),
            ("1.2.3.4/99999999999999999999", None),
            ("01.2.3.4/8", None),
            ("1.2.3/8", None),
            ("::1%eth0/64", None),
            ("::1/129", None),
            (" 1.2.3.4/8", None),
            ("1.2.3.4/8 ", None),
            ("/8", None),
            ("", None),
        ] {
            assert_eq!(of(json!(text)).as_deref(), expected, "{text}");
        }
        assert_eq!(of(json!(8)), None);
        assert_eq!(of(json!(["10.0.0.0/8"])), None);
    }

    #[test]
    fn only_structs_take_part_however_they_are_wrapped() {
        let object = json!({"$index": {"cidr": "10.0.0.0/8"}});
        let structure = any("google.protobuf.Struct", object.clone());
        let value = any("google.protobuf.Value", object.clone());
        let wrap =
            |inner: &[u8], times: usize| (0..times).fold(inner.to_vec(), |any, _| pack("google.protobuf.Any", &any));
        for data in [&structure, &value, &wrap(&structure, 1), &wrap(&value, WRAPPERS_MAX - 1)] {
            assert!(cidr_of(data).is_some());
        }
        assert!(cidr_of(&wrap(&structure, WRAPPERS_MAX)).is_none());
        assert!(cidr_of(&any("google.protobuf.Value", json!([object]))).is_none());
        assert!(cidr_of(&any("google.protobuf.Struct", json!({"x": object}))).is_none());
        assert!(cidr_of(&any("google.protobuf.Struct", json!({"$index": "10.0.0.0/8"}))).is_none());
        assert!(cidr_of(&any("session.SessionBinding", json!({"details": {"$index": "10.0.0.0/8"}}))).is_none());
        assert!(cidr_of(&pack("google.protobuf.Struct", b"\x0a\x50")).is_none());
        assert!(cidr_of(b"").is_none());
    }

    #[test]
    fn the_smallest_network_of_each_type_is_found() {
        let mut table = CidrTable::default();
        for (record_type, id, network) in [
            ("b", "wide", "10.0.0.0/8"),
            ("b", "two", "10.1.0.0/16"),
            ("b", "one", "10.1.0.0/16"),
            ("a", "wide", "10.0.0.0/8"),
            ("c", "same", "10.1.0.0/16"),
            ("c", "six", "2001:db8::/32"),
        ] {
            table.insert(record_type, id, network.parse().unwrap());
        }
        let found = |record_type: &str, value: &str| {
            let found = table.lookup(record_type, value).into_iter().map(|(t, id)| format!("{t}/{id}"));
            found.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found("a", "10.1.2.3"), "a/wide");
        assert_eq!(found("b", "10.1.2.3"), "b/one b/two");
        assert_eq!(found("", "10.1.2.3"), "b/one b/two c/same");
        assert_eq!(found("", "10.2.2.3"), "a/wide b/wide");
        assert_eq!(found("", "10.1.0.0/15"), "a/wide b/wide");
        assert_eq!(found("", "10.1.255.0/24"), "b/one b/two c/same");
        assert_eq!(found("", "2001:db8::7"), "c/six");
        for nothing in ["11.0.0.1", "::ffff:10.1.2.3", "10.1.2.3/x", "2001:db8::7%lo", "", "x"] {
            assert_eq!(found("", nothing), "", "{nothing}");
        }
        assert_eq!(found("d", "10.1.2.3"), "");
    }

    #[test]
    fn hostile_data_is_survived() {
        for data in samples::hostile() {
            assert_eq!(cidr_of(&data), None);
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_list(seed: u64) {
            let mut random = Random(seed);
            let mut table = CidrTable::default();
            let mut list: Vec<(String, String, IpNet)> = Vec::new();
            let network = |random: &mut Random| {
                let address: IpAddr = if random.below(4) == 0 {
                    std::net::Ipv6Addr::from(u128::from(random.next() & 0xf) << 120).into()
                } else {
                    std::net::Ipv4Addr::from((random.next() & 0x0f0f_0000) as u32).into()
                };
                let longest = if address.is_ipv4() { 32 } else { 16 };
                IpNet::new(address, random.below(longest + 1) as u8).unwrap()
            };
            for _ in 0..40 {
                let entry = (["a", "b", "c"][random.below(3)].to_owned(), ["1", "2", "3"][random.below(3)].to_owned(), network(&mut random).trunc());
                if random.below(3) == 0 {
                    table.remove(&entry.0, &entry.1, entry.2);
                    list.retain(|other| *other != entry);
                } else {
                    table.insert(&entry.0, &entry.1, entry.2);
                    list.push(entry);
                }
            }
            list.sort();
            list.dedup();
            for record_type in ["", "a", "b", "c", "d"] {
                let sought = network(&mut random);
                let text = if random.below(2) == 0 { sought.addr().to_string() } else { sought.to_string() };
                let sought = text.parse::<IpAddr>().map_or(sought, IpNet::from);
                let around = list.iter().filter(|(t, _, net)| (record_type.is_empty() || t == record_type) && net.contains(&sought));
                let longest = around.clone().map(|(_, _, net)| net.prefix_len()).max();
                let mut expected: Vec<_> =
                    around.filter(|(_, _, net)| Some(net.prefix_len()) == longest).map(|(t, id, _)| (t.clone(), id.clone())).collect();
                expected.dedup();
                prop_assert_eq!(table.lookup(record_type, &text), expected);
            }
        }
    }
}
