//! `imgtool`: the offline image tool.
