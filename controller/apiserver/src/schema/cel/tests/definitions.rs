//! The rules of the project's own definitions.

use serde_json::{Value, json};

use crate::schema::Schema;

fn schema(plural: &str) -> Schema {
    let path = format!("{}/../../crds/yaml/{plural}.vmlet.dev.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("a definition");
    let definition: Value = serde_saphyr::from_str(&text).expect("YAML");
    Schema::compile(
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
        "schema",
    )
    .expect("a valid schema")
}

/// Prepares an object as a write does, and validates it.
fn validate(plural: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema(plural);
    let prepare = |object: &Value| {
        let mut object = object.clone();
        assert_eq!(schema.prune(&mut object), Vec::<String>::new());
        schema.prune_nulls(&mut object);
        schema.apply_defaults(&mut object);
        object
    };
    let old = old.map(prepare);
    let errors = schema.validate(&prepare(object), old.as_ref());
    errors.iter().map(ToString::to_string).collect()
}

fn machine(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "vm"},
        "spec": {"imageRef": {"name": "debian"}}});
    if let Some(fields) = spec.as_object() {
        for (name, value) in fields {
            object["spec"][name] = value.clone();
        }
    }
    object
}

fn created(spec: Value) -> Vec<String> {
    validate("virtualmachines", &machine(spec), None)
}

fn updated(old: Value, new: Value) -> Vec<String> {
    validate("virtualmachines", &machine(new), Some(&machine(old)))
}

#[test]
fn every_definition_compiles() {
    for plural in ["images", "kernels", "virtualmachines", "vmnodes"] {
        schema(plural);
    }
}

#[test]
fn an_image_or_kernel_has_exactly_one_source() {
    let oci = json!({"reference": "registry.example.com/debian:12"});
    let path = json!({"path": "debian"});
    for (plural, kind) in [("images", "Image"), ("kernels", "Kernel")] {
        let object = |source: Value| json!({"apiVersion": "vmlet.dev/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": {"source": source}});
        let broken = ["spec.source: Invalid value: exactly one of oci, http and path must be set"];
        assert!(validate(plural, &object(json!({"oci": oci})), None).is_empty());
        assert!(validate(plural, &object(json!({"path": path})), None).is_empty());
        assert_eq!(validate(plural, &object(json!({})), None), broken);
        assert_eq!(
            validate(plural, &object(json!({"oci": oci, "path": path})), None),
            broken
        );
    }
}

#[test]
fn the_name_of_a_machine_fits_a_host_name() {
    let mut object = machine(json!({}));
    object["metadata"]["name"] = json!("a".repeat(63));
    assert!(validate("virtualmachines", &object, None).is_empty());
    object["metadata"]["name"] = json!("a".repeat(64));
    assert_eq!(
        validate("virtualmachines", &object, None),
        [
            "<nil>: Invalid value: metadata.name must have at most 63 characters, because it is the guest's default hostname"
        ]
    );
}

#[test]
fn memory_is_between_64_mi_and_1_ti() {
    for size in ["64Mi", "512Mi", "1Ti", "67108864", "1024Gi", "0.5Gi", "1000M"] {
        assert_eq!(
            created(json!({"memory": {"size": size}})),
            Vec::<String>::new(),
            "{size}"
        );
    }
    for size in ["63Mi", "1M", "2Ti", "1025Gi", "67108863"] {
        let wanted = format!("spec.memory.size: Invalid value: \"{size}\": must be at least 64Mi and at most 1Ti");
        assert_eq!(created(json!({"memory": {"size": size}})), [wanted]);
    }
}

#[test]
fn a_root_disk_has_a_size_in_bounds_and_grows_only() {
    for size in ["1Mi", "10Gi", "1Ti"] {
        assert_eq!(created(json!({"rootDisk": {"size": size}})), Vec::<String>::new());
    }
    let wanted = "spec.rootDisk.size: Invalid value: \"1023Ki\": must be at least 1Mi and at most 1Ti";
    assert_eq!(created(json!({"rootDisk": {"size": "1023Ki"}})), [wanted]);
    let disk = |size: &str| json!({"rootDisk": {"size": size}});
    let shrinks = ["spec.rootDisk: Invalid value: size can grow, not shrink"];
    assert!(updated(disk("1Gi"), disk("2Gi")).is_empty());
    assert!(updated(disk("1Gi"), disk("1024Mi")).is_empty());
    assert!(updated(json!({}), disk("1Gi")).is_empty());
    assert_eq!(updated(disk("2Gi"), disk("1Gi")), shrinks);
    assert_eq!(updated(disk("2Gi"), json!({})), shrinks);
}

#[test]
fn what_is_immutable_stays_as_it_is() {
    let cases = [
        (
            json!({"rootDisk": {"persistence": "Persistent"}}),
            json!({"rootDisk": {"persistence": "Ephemeral"}}),
            "spec.rootDisk.persistence: Invalid value: \"Ephemeral\": persistence is immutable",
        ),
        (
            json!({"vmm": {"type": "Auto"}}),
            json!({"vmm": {"type": "QEMU"}}),
            "spec.vmm.type: Invalid value: \"QEMU\": vmm.type is immutable",
        ),
        (
            json!({}),
            json!({"imageRef": {"name": "alpine"}}),
            "spec.imageRef: Invalid value: imageRef is immutable: create another VirtualMachine",
        ),
        (
            json!({"nodeName": "a"}),
            json!({"nodeName": "b"}),
            "spec: Invalid value: nodeName cannot be changed or removed once set",
        ),
        (
            json!({"nodeName": "a"}),
            json!({}),
            "spec: Invalid value: nodeName cannot be changed or removed once set",
        ),
    ];
    for (old, new, wanted) in cases {
        assert_eq!(updated(old.clone(), new), [wanted]);
        assert!(updated(old.clone(), old).is_empty());
    }
    assert!(updated(json!({}), json!({"nodeName": "a"})).is_empty());
}

#[test]
fn ports_are_forwarded_once() {
    let ports = |ports: Value| json!({"interfaces": [{"name": "nat", "nat": {"ports": ports}}]});
    let port = |name: &str, host: Option<u16>, guest: u16| match host {
        Some(host) => json!({"name": name, "hostPort": host, "guestPort": guest}),
        None => json!({"name": name, "guestPort": guest}),
    };
    assert_eq!(
        created(ports(json!([
            port("a", Some(2222), 22),
            port("b", Some(0), 80),
            port("c", Some(0), 81),
            port("d", None, 82)
        ]))),
        Vec::<String>::new()
    );
    let place = "spec.interfaces[0].nat.ports: Invalid value";
    assert_eq!(
        created(ports(json!([port("a", Some(2222), 22), port("b", Some(2222), 23)]))),
        [format!("{place}: hostPort must be unique for each hostIP and protocol")]
    );
    assert_eq!(
        created(ports(json!([port("a", None, 22), port("b", None, 22)]))),
        [format!("{place}: guestPort must be unique for each protocol")]
    );
    let mut udp = port("b", Some(2222), 22);
    udp["protocol"] = json!("UDP");
    assert_eq!(
        created(ports(json!([port("a", Some(2222), 22), udp]))),
        Vec::<String>::new()
    );
}

#[test]
fn an_ssh_key_looks_like_a_public_one_and_a_refusal_does_not_quote_it() {
    let keys = |keys: &[&str]| created(json!({"guest": {"sshAuthorizedKeys": keys}}));
    let ed25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Zl3uGqYQ5tq2wzWTo9mJ3j5hS1Uz6cJ7nqkQ2yqfB";
    for key in [
        ed25519,
        "ssh-rsa\tAAAAB3NzaC1yc2EAAAADAQAB me@home",
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQ=",
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t",
        "restrict,command=\"echo hi\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    ] {
        assert_eq!(keys(&[ed25519, key]), Vec::<String>::new(), "{key}");
    }
    for key in [
        "hello world",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-ed25519",
        "ssh-ed25519 hello",
        "my-ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    ] {
        let told = keys(&[ed25519, key]);
        assert!(
            told.len() == 1
                && told[0].starts_with("spec.guest.sshAuthorizedKeys: Invalid value: each must be a public key"),
            "{told:?}"
        );
        assert!(!told[0].contains("PRIVATE"), "{told:?}");
    }
}

#[test]
fn a_file_goes_where_it_can_be_seen_by_a_path_without_detours() {
    let file = |path: &str| created(json!({"guest": {"files": [{"path": path, "content": "x"}]}}));
    let longest = format!("/etc/{}", "x".repeat(255));
    for path in [
        "/a",
        "/etc/motd",
        "/etc/..data/x",
        "/a/.b/c..",
        "/...",
        "/processes",
        "/srv/dev/x",
        "/run/x",
        "/tmp/a b",
        &longest,
    ] {
        assert_eq!(file(path), Vec::<String>::new(), "{path}");
    }
    let longer = format!("{longest}x");
    for path in [
        "/a/../../b",
        "/..",
        "/a/./b",
        "/a/.",
        "//a",
        "/a//b",
        "/../proc/x",
        &longer,
    ] {
        let wanted = format!(
            "spec.guest.files[0].path: Invalid value: \"{path}\": must consist of names of at most 255 characters between single slashes, none of them . or .."
        );
        assert_eq!(file(path), [wanted]);
    }
    for path in ["/proc/x", "/sys/a/b", "/dev/shm/x", "/dev"] {
        let wanted = format!(
            "spec.guest.files[0].path: Invalid value: \"{path}\": must not be below /proc, /sys or /dev: the guest's kernel has file systems of its own there, which hide what was written before"
        );
        assert_eq!(file(path), [wanted]);
    }
    for path in ["/", "a", "/a/", "/a\u{0}b", "/a\nb"] {
        assert_eq!(file(path).len(), 1, "{path:?}");
    }
}
