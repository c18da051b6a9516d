//! Writes an ext4 file system straight into a file while its contents stream in
