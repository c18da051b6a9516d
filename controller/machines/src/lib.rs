//! VMM drivers, supervision, disks, network and guest configuration
