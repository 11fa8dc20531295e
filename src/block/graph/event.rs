//! Named moments in a driver's work, at which tests make requests fail: see [`crate::block::filter::blkdebug`].
//!
//! A driver tells the node below of them by [`crate::block::graph::Node::debug_event`]. Where no `blkdebug` is there
//! that is a call of an empty function.
//!
//! The names are QEMU's, so that its configurations can be read; some belong to formats, or to ways of writing,
//! that we do not have, and never come.

macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $name:literal,)*) => {
        /// A moment in a driver's work: it is about to do this.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $event,)*
        }

        impl Event {
            /// All there are.
            pub const ALL: &[Event] = &[$(Event::$event,)*];

            /// The name in configurations.
            pub fn name(self) -> &'static str {
                match self {
                    $(Event::$event => $name,)*
                }
            }
        }
    };
}

events! {
    /// Nothing: rules for it hold from the beginning.
    None = "none",
    /// Writing L1 entries.
    L1Update = "l1_update",
    /// Taking clusters for a longer L1 table.
    L1GrowAllocTable = "l1_grow_alloc_table",
    /// Writing the longer L1 table.
    L1GrowWriteTable = "l1_grow_write_table",
    /// Switching the header to the longer L1 table.
    L1GrowActivateTable = "l1_grow_activate_table",
    /// Writing the shorter L1 table.
    L1ShrinkWriteTable = "l1_shrink_write_table",
    /// Giving back the L2 tables that a shorter L1 table no longer names.
    L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters",
    /// Reading an L2 table or a part of it.
    L2Load = "l2_load",
    /// Writing L2 entries.
    L2Update = "l2_update",
    /// Setting the L2 entry of a compressed cluster.
    L2UpdateCompressed = "l2_update_compressed",
    /// Reading the L2 table that a new one copies.
    L2AllocCowRead = "l2_alloc_cow_read",
    /// Writing a new L2 table.
    L2AllocWrite = "l2_alloc_write",
    /// Reading data of the guest.
    ReadAio = "read_aio",
    /// Reading data of the guest from the backing file.
    ReadBackingAio = "read_backing_aio",
    /// Reading a compressed cluster.
    ReadCompressed = "read_compressed",
    /// Writing data of the guest.
    WriteAio = "write_aio",
    /// Writing a compressed cluster.
    WriteCompressed = "write_compressed",
    /// Reading VM state.
    VmstateLoad = "vmstate_load",
    /// Writing VM state.
    VmstateSave = "vmstate_save",
    /// Reading the old content around a write to a new cluster.
    CowRead = "cow_read",
    /// Writing it, with the data between.
    CowWrite = "cow_write",
    /// Copying to the overlay what was read from a backing file.
    CorWrite = "cor_write",
    /// Reading the refcount table.
    ReftableLoad = "reftable_load",
    /// Making the refcount table longer.
    ReftableGrow = "reftable_grow",
    /// Writing entries of the refcount table.
    ReftableUpdate = "reftable_update",
    /// Reading a refcount block.
    RefblockLoad = "refblock_load",
    /// Writing a refcount block.
    RefblockUpdate = "refblock_update",
    /// Writing a part of a refcount block.
    RefblockUpdatePart = "refblock_update_part",
    /// Taking a cluster for a refcount block.
    RefblockAlloc = "refblock_alloc",
    /// Entering a new refcount block in the table.
    RefblockAllocHookup = "refblock_alloc_hookup",
    /// Writing a new refcount block.
    RefblockAllocWrite = "refblock_alloc_write",
    /// Writing the refcount blocks of a longer refcount table.
    RefblockAllocWriteBlocks = "refblock_alloc_write_blocks",
    /// Writing the longer refcount table.
    RefblockAllocWriteTable = "refblock_alloc_write_table",
    /// Switching the header to the longer refcount table.
    RefblockAllocSwitchTable = "refblock_alloc_switch_table",
    /// Taking clusters.
    ClusterAlloc = "cluster_alloc",
    /// Taking a part of a cluster, for compressed data.
    ClusterAllocBytes = "cluster_alloc_bytes",
    /// Counting clusters down.
    ClusterFree = "cluster_free",
    /// Giving a new cluster its space before it is written.
    ClusterAllocSpace = "cluster_alloc_space",
    /// Writing back what the driver caches.
    FlushToOs = "flush_to_os",
    /// Flushing the host's cache.
    FlushToDisk = "flush_to_disk",
    /// Reading the first block of a write that is not aligned.
    PwritevRmwHead = "pwritev_rmw_head",
    /// That block was read.
    PwritevRmwAfterHead = "pwritev_rmw_after_head",
    /// Reading the last block of a write that is not aligned.
    PwritevRmwTail = "pwritev_rmw_tail",
    /// That block was read.
    PwritevRmwAfterTail = "pwritev_rmw_after_tail",
    /// A write comes to this node.
    Pwritev = "pwritev",
    /// A request to write zeros comes to this node.
    PwritevZero = "pwritev_zero",
    /// A write to this node is over.
    PwritevDone = "pwritev_done",
    /// Emptying an image.
    EmptyImagePrepare = "empty_image_prepare",
}

impl Event {
    /// The event of a name.
    pub fn parse(name: &str) -> Option<Event> {
        Event::ALL.iter().copied().find(|event| event.name() == name)
    }
}
