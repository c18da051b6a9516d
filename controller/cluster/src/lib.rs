//! What is decided once per cluster: resolving references and binding VMs
