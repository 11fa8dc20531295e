//! The handshake ("Newstyle negotiation", "Fixed newstyle negotiation").
//!
//! ```text
//!   option                              reply
//!   0   8  IHAVEOPT                     0   8  magic
//!   8   4  option                       8   4  option that it answers
//!   12  4  length                       12  4  type; bit 31: error
//!   16     data                         16  4  length
//!                                       20     data
//! ```

use super::{Fields, MAX_STRING, NEWSTYLE, info, put_string};

/// First number of a reply to an option.
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Most contexts that one option may ask for.
const MAX_QUERIES: u32 = 1024;

/// What comes before the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of [`super::option`].
    pub option: u32,
    /// Bytes of data.
    pub len: u32,
}

impl OptionHeader {
    /// Size in bytes.
    pub const SIZE: usize = 16;

    /// Reads one; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<OptionHeader> {
        let mut fields = Fields(bytes);
        if fields.u64()? != NEWSTYLE {
            return None;
        }
        Some(OptionHeader { option: fields.u32()?, len: fields.u32()? })
    }
}

/// An option with its data.
pub fn option_message(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(OptionHeader::SIZE + data.len());
    out.extend(NEWSTYLE.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// What comes before the data of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option that is answered.
    pub option: u32,
    /// One of [`super::reply`].
    pub kind: u32,
    /// Bytes of data.
    pub len: u32,
}

impl OptionReply {
    /// Size in bytes.
    pub const SIZE: usize = 20;

    /// Reads one; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<OptionReply> {
        let mut fields = Fields(bytes);
        if fields.u64()? != REPLY_MAGIC {
            return None;
        }
        Some(OptionReply { option: fields.u32()?, kind: fields.u32()?, len: fields.u32()? })
    }
}

/// A reply to an option with its data.
pub fn reply_message(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(OptionReply::SIZE + data.len());
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// Constraints of requests, in bytes ("Block size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this.
    pub minimum: u32,
    /// Requests of this are efficient.
    pub preferred: u32,
    /// No payload is longer.
    pub maximum: u32,
}

impl BlockSizes {
    /// What holds where nothing was said.
    pub const UNSAID: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, maximum: super::MAX_TRANSFER };

    /// Whether they are as the section demands: powers of two, in order.
    pub fn make_sense(self) -> bool {
        let aligned = self.maximum == u32::MAX || self.maximum.is_multiple_of(self.minimum.max(1));
        self.minimum.is_power_of_two()
            && self.minimum <= 1 << 16
            && self.preferred.is_power_of_two()
            && self.preferred >= self.minimum
            && self.maximum >= self.minimum
            && aligned
    }
}

/// Data of INFO and GO: the export's name and the facts that are wanted.
pub fn go_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, name);
    out.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| out.extend(kind.to_be_bytes()));
    out
}

/// Reads [`go_data`].
pub fn parse_go(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = usize::from(fields.u16()?);
    if fields.0.len() != count * 2 {
        return None;
    }
    let wanted = std::iter::from_fn(|| fields.u16()).collect();
    Some((name, wanted))
}

/// A fact of an export, as INFO and GO are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes and transmission flags.
    Export(u64, u16),
    /// The name.
    Name(String),
    /// A text for people.
    Description(String),
    /// Constraints.
    BlockSize(BlockSizes),
    /// Something that this program does not know.
    Other,
}

impl Info {
    /// The data of the reply.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = |kind: u16, text: &str| [&kind.to_be_bytes()[..], text.as_bytes()].concat();
        match self {
            Info::Export(size, flags) => {
                [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
            }
            Info::Name(name) => text(info::NAME, name),
            Info::Description(words) => text(info::DESCRIPTION, words),
            Info::BlockSize(sizes) => {
                let numbers = [sizes.minimum, sizes.preferred, sizes.maximum].map(u32::to_be_bytes).concat();
                [&info::BLOCK_SIZE.to_be_bytes()[..], &numbers].concat()
            }
            Info::Other => Vec::new(),
        }
    }

    /// Reads one.
    pub fn parse(data: &[u8]) -> Option<Info> {
        let mut fields = Fields(data);
        let parsed = match fields.u16()? {
            info::EXPORT => Info::Export(fields.u64()?, fields.u16()?),
            info::NAME => return Some(Info::Name(fields.rest()?.to_owned())),
            info::DESCRIPTION => return Some(Info::Description(fields.rest()?.to_owned())),
            info::BLOCK_SIZE => Info::BlockSize(BlockSizes {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            }),
            _ => return Some(Info::Other),
        };
        fields.end()?;
        Some(parsed)
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT: the export's name and the queries.
pub fn contexts_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, name);
    out.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| put_string(&mut out, query));
    out
}

/// Reads [`contexts_data`].
pub fn parse_contexts(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    if count > MAX_QUERIES {
        return None;
    }
    let queries: Option<Vec<&str>> = (0..count).map(|_| fields.string()).collect();
    fields.end()?;
    Some((name, queries?))
}

/// Data of a context: its number and its name.
pub fn context_data(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// Reads [`context_data`].
pub fn parse_context(data: &[u8]) -> Option<(u32, &str)> {
    let mut fields = Fields(data);
    Some((fields.u32()?, fields.rest()?))
}

/// Data of an export of the list: its name, and a text for people behind it.
pub fn listed_data(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, name);
    out
}

/// Reads [`listed_data`]; the text is left out.
pub fn parse_listed(data: &[u8]) -> Option<&str> {
    Fields(data).string()
}

/// Whether a name or text is one that the protocol can carry.
pub fn fits(text: &str) -> bool {
    text.len() <= MAX_STRING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_replies_are_read_back() {
        let message = option_message(7, b"abc");
        assert_eq!(OptionHeader::parse(&message), Some(OptionHeader { option: 7, len: 3 }));
        assert_eq!(&message[..8], b"IHAVEOPT");
        let message = reply_message(7, 3, b"abcd");
        assert_eq!(OptionReply::parse(&message), Some(OptionReply { option: 7, kind: 3, len: 4 }));
        assert_eq!(OptionHeader::parse(&[0; 16]), None);
        assert_eq!(OptionReply::parse(&[0; 20]), None);
    }

    #[test]
    fn data_of_options_is_read_back_and_every_cut_is_refused() {
        let go = go_data("name", &[3, 1]);
        assert_eq!(parse_go(&go), Some(("name", vec![3, 1])));
        assert!((0..go.len()).all(|len| parse_go(&go[..len]).is_none()));
        let contexts = contexts_data("n", &["base:allocation", "qemu:"]);
        assert_eq!(parse_contexts(&contexts), Some(("n", vec!["base:allocation", "qemu:"])));
        assert!((0..contexts.len()).all(|len| parse_contexts(&contexts[..len]).is_none()));
        let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        for fact in [Info::Export(1 << 40, 5), Info::Name("a".into()), Info::BlockSize(sizes)] {
            assert_eq!(Info::parse(&fact.to_bytes()), Some(fact));
        }
    }

    #[test]
    fn names_longer_than_the_protocol_has_are_refused() {
        let long = "a".repeat(MAX_STRING + 1);
        assert_eq!(parse_go(&go_data(&long, &[])), None);
        assert_eq!(parse_contexts(&contexts_data("", &[&long])), None);
        assert!(parse_go(&go_data(&long[1..], &[])).is_some());
    }
}
