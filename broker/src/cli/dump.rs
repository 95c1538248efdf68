//! The file that `export` writes and `import` reads: one JSON object a line.
//!
//! ```text
//! {"databrokerExport":1,"serverVersion":"123","recordVersion":456}       the header: what the file is, and from when
//! {"options":{"type":T,"capacity":50000,"indexableFields":["key"]}}      per type with options
//! {"type":T,"id":I,"data":"<base64>"}                                     per record, in the server's order: (type, id)
//! {"end":{"records":N,"options":M,"sha256":"…"}}                          a file without it is cut short
//! ```
//!
//! `data` is the record's `google.protobuf.Any` byte for byte. What else a record holds besides type, id and what the
//! store gives it (version and times, which are not in the file) is in `more`: encoded fields, byte for byte. `decoded`
//! is for people, and is not read. The hash is over all bytes between the header's line and the last, so that exports of
//! equal stores differ in the header alone.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf, Bytes};
use databroker_proto::EncodedRecord;
use prost::{
    DecodeError,
    encoding::{self, DecodeContext, WireType},
};
use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::options::OptionsJson;

/// The format this build writes, and the newest it reads.
pub(super) const FORMAT: u32 = 1;

/// The longest line: a record of 64 MiB in base64, twice, and its decoded form.
const LINE_BYTES_MAX: u64 = 512 << 20;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    /// Marks the file for what it is; the format's number.
    pub(super) databroker_export: u32,
    /// The server it was taken from. A string, as it is random over all 64 bits and many programs read numbers as floats.
    pub(super) server_version: String,
    /// All changes up to this record version are in the file; later ones may be.
    pub(super) record_version: u64,
    /// Whether records have their readable form beside them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) decoded: bool,
}

/// The options of a type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OptionsLine {
    pub(super) r#type: String,
    #[serde(flatten)]
    pub(super) options: OptionsJson,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) records: u64,
    pub(super) options: u64,
    pub(super) sha256: String,
}

/// Any line but the first.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line {
    Options(OptionsLine),
    Record(Parts),
    End(End),
}

/// A record without what the store gives it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parts {
    pub(super) r#type: String,
    pub(super) id: String,
    /// The encoded `Any`.
    pub(super) data: Option<Bytes>,
    /// Encoded fields: those this build does not know.
    pub(super) more: Vec<u8>,
}

/// A line as it is spelt.
#[derive(Default, Serialize, Deserialize)]
struct Spelt<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    options: Option<OptionsLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    r#type: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    more: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none", skip_deserializing)]
    decoded: Option<Value>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum DumpError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not an export: the first line has no \"databrokerExport\"")]
    NotAnExport,
    #[error("it has format {0}, and this build reads up to {FORMAT}: use a newer one")]
    Newer(u32),
    #[error("line {number}: {reason}")]
    Malformed { number: u64, reason: String },
    #[error("it is cut short: there is no \"end\" after line {0}")]
    CutShort(u64),
    #[error("it was changed: its contents have another count or SHA-256 than its last line says")]
    Changed,
    /// The records written before an interruption are not those the server has now.
    #[error("the store has changed since the export was interrupted")]
    Stale,
}

impl Parts {
    /// Takes a record apart.
    pub(super) fn split(record: &EncodedRecord) -> Result<Self, DecodeError> {
        let mut parts = Self::default();
        let mut rest = record.as_bytes().clone();
        while rest.has_remaining() {
            let field = rest.clone();
            let (tag, wire_type) = encoding::decode_key(&mut rest)?;
            let text = wire_type == WireType::LengthDelimited;
            match tag {
                2 if text => {
                    encoding::string::merge(wire_type, &mut parts.r#type, &mut rest, DecodeContext::default())?
                }
                3 if text => encoding::string::merge(wire_type, &mut parts.id, &mut rest, DecodeContext::default())?,
                4 if text && parts.data.is_none() => {
                    let mut data = Bytes::new();
                    encoding::bytes::merge(wire_type, &mut data, &mut rest, DecodeContext::default())?;
                    parts.data = Some(data);
                }
                1 | 5 | 6 => encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default())?,
                _ => {
                    encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default())?;
                    parts.more.extend_from_slice(&field[..field.len() - rest.len()]);
                }
            }
        }
        Ok(parts)
    }

    /// Puts it together again.
    pub(super) fn join(&self) -> EncodedRecord {
        let mut bytes = Vec::with_capacity(self.r#type.len() + self.id.len() + self.more.len() + 64);
        if !self.r#type.is_empty() {
            encoding::string::encode(2, &self.r#type, &mut bytes);
        }
        if !self.id.is_empty() {
            encoding::string::encode(3, &self.id, &mut bytes);
        }
        if let Some(data) = &self.data {
            encoding::bytes::encode(4, data, &mut bytes);
        }
        bytes.extend_from_slice(&self.more);
        EncodedRecord::from_bytes(bytes)
    }
}

impl Line {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let spelt: Spelt<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let bytes = |text: Cow<'_, str>| STANDARD.decode(text.as_bytes()).map_err(|_| "not base64".to_owned());
        match spelt {
            Spelt { end: Some(end), .. } => Ok(Self::End(end)),
            Spelt { options: Some(options), .. } => {
                options.options.to_options().map_err(|ttl| format!("{ttl:?} is not a duration"))?;
                Ok(Self::Options(options))
            }
            Spelt { r#type: Some(r#type), id: Some(id), data, more, .. } => Ok(Self::Record(Parts {
                r#type: r#type.into_owned(),
                id: id.into_owned(),
                data: data.map(bytes).transpose()?.map(Bytes::from),
                more: more.map(bytes).transpose()?.unwrap_or_default(),
            })),
            _ => Err("neither a record, options nor the end".to_owned()),
        }
    }
}

/// Writes a file line by line; on a file that was begun before, it only compares until it is at its end.
pub(super) struct Writer<W: Write> {
    to: BufWriter<W>,
    hash: digest::Context,
    records: u64,
    options: u64,
    written_before: Option<Begun>,
}

/// The whole lines after the header that a file begun before holds.
pub(super) struct Begun {
    lines: u64,
    sha256: String,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    pub(super) fn new(to: W, header: &Header) -> Result<Self, DumpError> {
        let mut writer = Self::resume(to, Begun { lines: 0, sha256: String::new() });
        let mut line = serde_json::to_vec(header).map_err(io::Error::from)?;
        line.push(b'\n');
        writer.to.write_all(&line)?;
        Ok(writer)
    }

    /// Goes on with a file that stands at the end of `begun`. All lines are to be written again, and are compared.
    pub(super) fn resume(to: W, begun: Begun) -> Self {
        Self {
            to: BufWriter::with_capacity(1 << 18, to),
            hash: digest::Context::new(&digest::SHA256),
            records: 0,
            options: 0,
            written_before: (begun.lines > 0).then_some(begun),
        }
    }

    pub(super) fn options(&mut self, options: OptionsLine) -> Result<(), DumpError> {
        self.options += 1;
        self.line(&Spelt { options: Some(options), ..Default::default() })
    }

    pub(super) fn record(&mut self, parts: &Parts, decoded: Option<Value>) -> Result<(), DumpError> {
        self.records += 1;
        self.line(&Spelt {
            r#type: Some(Cow::Borrowed(&parts.r#type)),
            id: Some(Cow::Borrowed(&parts.id)),
            data: parts.data.as_ref().map(|data| STANDARD.encode(data).into()),
            more: (!parts.more.is_empty()).then(|| STANDARD.encode(&parts.more).into()),
            decoded,
            ..Default::default()
        })
    }

    fn line(&mut self, line: &Spelt<'_>) -> Result<(), DumpError> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::from)?;
        text.push(b'\n');
        self.hash.update(&text);
        let Some(begun) = &mut self.written_before else { return Ok(self.to.write_all(&text)?) };
        begun.lines -= 1;
        if begun.lines == 0 {
            if begun.sha256 != hex(&self.hash) {
                return Err(DumpError::Stale);
            }
            self.written_before = None;
        }
        Ok(())
    }

    /// Writes the last line, and gives the file back.
    pub(super) fn end(mut self) -> Result<(W, End), DumpError> {
        if self.written_before.is_some() {
            return Err(DumpError::Stale);
        }
        let end = End { records: self.records, options: self.options, sha256: hex(&self.hash) };
        let mut text =
            serde_json::to_vec(&Spelt { end: Some(end.clone()), ..Default::default() }).map_err(io::Error::from)?;
        text.push(b'\n');
        self.to.write_all(&text)?;
        let to = self.to.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((to, end))
    }
}

fn hex(hash: &digest::Context) -> String {
    hash.clone().finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file line by line. Does not compare hashes by itself: see [`Reader::check`].
pub(super) struct Reader<R> {
    from: BufReader<R>,
    header: Header,
    /// Bytes read so far.
    offset: u64,
    /// Lines read so far.
    number: u64,
    hash: digest::Context,
}

impl Reader<File> {
    pub(super) fn open(file: &Path) -> Result<Self, DumpError> {
        Self::new(File::open(file)?)
    }
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Result<Self, DumpError> {
        let hash = digest::Context::new(&digest::SHA256);
        let header = Header { databroker_export: 0, server_version: String::new(), record_version: 0, decoded: false };
        let mut reader = Self { from: BufReader::with_capacity(1 << 18, from), header, offset: 0, number: 0, hash };
        let first = reader.whole_line()?.ok_or(DumpError::NotAnExport)?;
        reader.header = parse_header(&first)?;
        Ok(reader)
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Where the next line begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line; None where the file ends or is cut.
    fn whole_line(&mut self) -> Result<Option<Vec<u8>>, DumpError> {
        let mut line = Vec::new();
        let length = (&mut self.from).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.offset += length as u64;
        self.number += 1;
        Ok(Some(line))
    }

    /// The next line, which is part of the contents unless it is the end.
    pub(super) fn line(&mut self) -> Result<Line, DumpError> {
        let text = self.whole_line()?.ok_or(DumpError::CutShort(self.number))?;
        let line = Line::parse(&text).map_err(|reason| DumpError::Malformed { number: self.number, reason })?;
        if !matches!(line, Line::End(_)) {
            self.hash.update(&text);
        }
        Ok(line)
    }

    /// Reads all, shows each line, and proves that the file is whole.
    pub(super) fn check(&mut self, mut show: impl FnMut(&Line)) -> Result<End, DumpError> {
        let (mut records, mut options) = (0, 0);
        loop {
            let line = self.line()?;
            show(&line);
            match line {
                Line::Record(_) => records += 1,
                Line::Options(_) => options += 1,
                Line::End(end) => {
                    let found = End { records, options, sha256: hex(&self.hash) };
                    return if found == end { Ok(end) } else { Err(DumpError::Changed) };
                }
            }
        }
    }

    /// How much of the contents is there in whole lines, and where they end.
    pub(super) fn begun(mut self) -> (Begun, u64) {
        let mut lines = 0;
        let mut end = self.offset;
        while let Ok(Line::Options(_) | Line::Record(_)) = self.line() {
            lines += 1;
            end = self.offset;
        }
        (Begun { lines, sha256: hex(&self.hash) }, end)
    }
}

impl Reader<File> {
    /// Goes to where a line begins.
    pub(super) fn seek(&mut self, offset: u64) -> Result<(), DumpError> {
        self.from.seek(SeekFrom::Start(offset))?;
        self.offset = offset;
        Ok(())
    }
}

fn parse_header(line: &[u8]) -> Result<Header, DumpError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mark {
        databroker_export: u32,
    }
    // The number first: a newer format's header may look otherwise.
    let mark: Mark = serde_json::from_slice(line).map_err(|_| DumpError::NotAnExport)?;
    if mark.databroker_export > FORMAT {
        return Err(DumpError::Newer(mark.databroker_export));
    }
    serde_json::from_slice(line).map_err(|error| DumpError::Malformed { number: 1, reason: error.to_string() })
}
