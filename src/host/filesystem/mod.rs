//! Filesystems on block devices: look, format, check, mount, grow.

pub mod directory;
pub mod format;
pub mod grow;
pub mod mount;
pub mod mountinfo;
pub mod probe;
