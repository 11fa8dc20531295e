//! What an image says of itself, without a look at the disk in it.

use super::SECTOR;
use crate::block::Result;
use crate::block::aio::Engine;
use crate::block::filename::beside;
use crate::block::graph::driver::{Qcow2Specifics, Specifics};
use crate::block::graph::{ChildRole, Node};
use crate::block::open::open;
use crate::block::options::OpenOptions;
use std::rc::Rc;

/// Facts of one node.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The name it was opened by.
    pub filename: String,
    /// The driver's name.
    pub format: &'static str,
    /// Size of the disk (of the file, for a protocol node) in bytes, in whole sectors.
    pub virtual_size: u64,
    /// Space on the host in bytes, backing files not counted; `None` where the host does not say.
    pub actual_size: Option<u64>,
    /// What only this format has to say.
    pub specifics: Option<Specifics>,
    /// The node below that holds its bytes.
    pub file: Option<Box<NodeInfo>>,
}

impl NodeInfo {
    /// The facts of `node`.
    pub fn of(node: &Node) -> NodeInfo {
        let file = node.child(ChildRole::File).map(|file| Box::new(NodeInfo::of(&file)));
        let own = node.driver().allocated_size();
        NodeInfo {
            filename: node.filename().to_owned(),
            format: node.driver().format_name(),
            virtual_size: node.size().next_multiple_of(SECTOR),
            actual_size: own.or(file.as_ref().and_then(|file| file.actual_size)),
            specifics: node.driver().specifics(),
            file,
        }
    }

    /// What the header says, where the image is a qcow2 one.
    pub fn qcow2(&self) -> Option<&Qcow2Specifics> {
        match &self.specifics {
            Some(Specifics::Qcow2(facts)) => Some(facts),
            _ => None,
        }
    }

    /// The backing file: its name as the header has it, the name to open it by, its format where it is known.
    pub fn backing(&self) -> Option<(String, String, Option<String>)> {
        let facts = self.qcow2()?;
        let name = facts.backing_file.clone()?;
        let full = beside(&self.filename, &name);
        Some((name, full, facts.backing_format.clone()))
    }
}

/// Opens one image alone, takes its facts and closes it.
///
/// # Errors
/// As [`open`].
pub async fn inspect(engine: &Rc<Engine>, filename: &str, options: &OpenOptions) -> Result<NodeInfo> {
    let options = OpenOptions { backing: false, metadata_only: true, ..options.clone() };
    let node = open(engine, filename, &options).await?;
    let info = NodeInfo::of(&node);
    node.close().await?;
    Ok(info)
}
