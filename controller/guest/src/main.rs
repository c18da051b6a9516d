//! PID 1 of a guest: from the initrd to a running workload, and to power-off after it.

mod boot;

fn main() {
    if std::process::id() != 1 {
        eprintln!("vmlet-init is the first process of a vmlet guest; it does nothing else");
        std::process::exit(2);
    }
    boot::main();
}
