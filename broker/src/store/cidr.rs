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

/// How many Anys may be packed into each other.
const WRAPPERS_MAX: usize = 16;

/// The network a record speaks of; `any` is its encoded `google.protobuf.Any`. Bits after the prefix are cleared.
pub fn cidr_of(any: &[u8]) -> Option<IpNet> {
    let mut any = Any::parse(any).ok()?;
    for _ in 0..WRAPPERS_MAX {
        match any.message_name() {
            "google.protobuf.Any" => any = Any::parse(any.value).ok()?,
            "google.protobuf.Struct" => return cidr_in(any.value),
            "google.protobuf.Value" => return cidr_in(json::members(any.value)?),
            _ => return None,
        }
    }
    None
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
}

impl CidrTable {
    /// Notes that a record speaks of a network.
    pub fn insert(&mut self, record_type: &str, id: &str, network: IpNet) {
        let networks = self.types.entry(record_type.to_owned()).or_default();
        networks.entry(network.trunc()).or_default().insert(id.to_owned());
    }

    /// Forgets what [`CidrTable::insert`] noted; nothing happens if it did not.
    pub fn remove(&mut self, record_type: &str, id: &str, network: IpNet) {
        let network = network.trunc();
        let Some(networks) = self.types.get_mut(record_type) else { return };
        let Some(ids) = networks.get_mut(&network) else { return };
        ids.remove(id);
        if ids.is_empty() {
            networks.remove(&network);
        }
        if networks.is_empty() {
            self.types.remove(record_type);
        }
    }

    /// The records of the smallest network around `value` (an address or a network as text; anything else is in none),
    /// as (type, id), sorted. Of type `""`: the smallest over all types, and all records that have it.
    pub fn lookup(&self, record_type: &str, value: &str) -> Vec<(String, String)> {
        let Some(sought) = sought(value) else { return Vec::new() };
        let wanted = |found: &&String| record_type.is_empty() || *found == record_type;
        let hits = self.types.iter().filter(|(found, _)| wanted(found));
        let hits: Vec<_> = hits.filter_map(|(found, networks)| Some((found, networks.get_lpm(&sought)?))).collect();
        let Some(longest) = hits.iter().map(|(_, (network, _))| network.prefix_len()).max() else { return Vec::new() };
        hits.into_iter()
            .filter(|(_, (network, _))| network.prefix_len() == longest)
            .flat_map(|(found, (_, ids))| ids.iter().map(move |id| (found.clone(), id.clone())))
            .collect()
    }
}
