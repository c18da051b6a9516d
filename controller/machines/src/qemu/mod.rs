//! QEMU: its command line, its monitor, its disks.

pub mod argv;
pub mod qcow2;
pub mod qmp;
