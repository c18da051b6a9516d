use super::*;

fn parse(text: &str) -> Registries {
    Registries::parse(Path::new("/etc/vmlet/registries.conf"), text).expect("a good file")
}

fn refused(text: &str) -> String {
    let result = Registries::parse(Path::new("/etc/vmlet/registries.conf"), text);
    result.expect_err(text).to_string()
}

fn targets(registries: &Registries, reference: &str) -> Vec<String> {
    let reference = reference.parse().expect("a reference");
    let targets = registries.targets(&reference).expect("not blocked");
    let kind = |target: &Target| match (target.own, target.tags, target.digests) {
        (true, ..) => " own",
        (false, true, true) => "",
        (false, true, false) => " tags",
        (false, ..) => " digests",
    };
    targets
        .iter()
        .map(|target| format!("{}/{}{}", target.host, target.repository, kind(target)))
        .collect()
}

fn url(text: &str) -> Url {
    Url::parse(text).expect("a URL")
}

#[test]
fn mirrors_come_in_their_order_and_the_registry_itself_last() {
    let registries = parse(
        r#"
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "first.example:5000/hub"
        [[registry.mirror]]
        location = "second.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "third.example"
        pull-from-mirror = "tag-only"
        "#,
    );
    assert_eq!(
        targets(&registries, "alpine:3"),
        [
            "first.example:5000/hub/library/alpine",
            "second.example/library/alpine digests",
            "third.example/library/alpine tags",
            "docker.io/library/alpine own",
        ]
    );
    assert_eq!(targets(&registries, "r.example/x"), ["r.example/x own"]);
    assert_eq!(
        targets(&Registries::default(), "alpine"),
        ["docker.io/library/alpine own"]
    );
}

#[test]
fn the_longest_prefix_decides_and_ends_between_components() {
    let registries = parse(
        r#"
        [[registry]]
        prefix = "*.example"
        [[registry.mirror]]
        location = "all.mirror.test/cache"
        [[registry]]
        prefix = "r.example"
        location = "moved.test/r"
        [[registry]]
        prefix = "r.example/team"
        location = "r.example/groups/team"
        [[registry]]
        prefix = "r.example/secret"
        location = "r.example/secret"
        blocked = true
        "#,
    );
    assert_eq!(
        targets(&registries, "a.b.example/x/y"),
        ["all.mirror.test/cache/x/y", "a.b.example/x/y own"]
    );
    assert_eq!(targets(&registries, "r.example/x"), ["moved.test/r/x"]);
    assert_eq!(
        targets(&registries, "r.example/team/app"),
        ["r.example/groups/team/app own"]
    );
    assert_eq!(targets(&registries, "r.example/team"), ["r.example/groups/team own"]);
    assert_eq!(targets(&registries, "r.example/teams/app"), ["moved.test/r/teams/app"]);
    let secret = "r.example/secret/x".parse().expect("a reference");
    let why = registries.targets(&secret).expect_err("blocked");
    assert!(why.contains("registries.conf, line 12, blocks it"), "{why}");
}

#[test]
fn what_is_said_of_a_host_holds_for_it_and_no_other() {
    let registries = parse(
        r#"
        [[registry]]
        location = "plain.example:5000"
        insecure = true
        [[registry]]
        prefix = "*.corp.example"
        ca = "corp.pem"
        proxy = "http://u:p@proxy.corp.example:3128"
        [[registry]]
        location = "direct.corp.example"
        proxy = "none"
        [[registry.mirror]]
        location = "m.example"
        ca = "/etc/ssl/m.pem"
        "#,
    );
    assert_eq!(registries.plain(&url("http://plain.example:5000/v2/")), Some(true));
    for other in [
        "http://plain.example/",
        "http://plain.example:5001/",
        "http://a.plain.example:5000/",
    ] {
        assert_eq!(registries.plain(&url(other)), None, "{other}");
    }
    let corp = Path::new("/etc/vmlet/corp.pem");
    assert_eq!(registries.ca(&url("https://r.corp.example:8443/")), Some(corp));
    assert_eq!(
        registries.ca(&url("https://direct.corp.example/")),
        Some(corp),
        "the wildcard says it"
    );
    assert_eq!(
        registries.ca(&url("https://m.example/")),
        Some(Path::new("/etc/ssl/m.pem"))
    );
    for other in [
        "https://corp.example/",
        "https://xcorp.example/",
        "https://m.example:8443/",
        "https://evil.test/",
    ] {
        assert_eq!(registries.ca(&url(other)), None, "{other}");
    }
    let proxy = |at: &str| registries.proxy(&url(at)).map(|proxy| proxy.to_string());
    assert_eq!(
        proxy("https://r.corp.example/").as_deref(),
        Some("http://u:p@proxy.corp.example:3128/")
    );
    assert_eq!(proxy("https://direct.corp.example/"), None);
    assert_eq!(registries.proxy_hosts(), ["proxy.corp.example"]);
    assert!(!format!("{registries:?}").contains("u:p"));
}

#[test]
fn the_files_own_proxy_comes_before_that_of_the_environment() {
    let get = |name: &str| (name == "HTTPS_PROXY").then(|| "http://env.example:1".to_owned());
    let registries = parse("[[registry]]\nlocation = \"r.example\"\nproxy = \"http://own.example:2\"\n");
    let registries = registries.with_environment(get).expect("a proxy");
    let proxy = |at: &str| {
        registries
            .proxy(&url(at))
            .and_then(|proxy| proxy.host_str().map(str::to_owned))
    };
    assert_eq!(proxy("https://r.example/").as_deref(), Some("own.example"));
    assert_eq!(proxy("https://elsewhere.example/").as_deref(), Some("env.example"));
}

#[test]
fn what_is_not_understood_is_refused_with_its_line_and_what_to_do() {
    for (text, line, parts) in [
        (
            "unqualified-search-registries = [\"docker.io\"]\n",
            1,
            &["unqualified-search-registries", "remove it"][..],
        ),
        (
            "\n[[registry]]\nlocation = \"r.example\"\ntls-verify = false\n",
            4,
            &["tls-verify", "ca ="],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\nmirors = []\n",
            3,
            &["mirors", "docs/registries.md"],
        ),
        ("[[registry]]\ninsecure = true\n", 1, &["prefix or location"]),
        (
            "[[registry]]\nlocation = \"http://r.example\"\n",
            2,
            &["http://r.example", "insecure = true"],
        ),
        (
            "[[registry]]\nlocation = \"r.example/UPPER\"\n",
            2,
            &["r.example/UPPER", "host[:port][/path]"],
        ),
        (
            "[[registry]]\nlocation = \"r.example:1/a:tag\"\n",
            2,
            &["r.example:1/a:tag"],
        ),
        ("[[registry]]\nlocation = \"r.example/\"\n", 2, &["r.example/"]),
        ("[[registry]]\nlocation = \"../etc\"\n", 2, &["../etc"]),
        ("[[registry]]\nprefix = \"*.\"\n", 2, &["prefix", "*.example.org"]),
        (
            "[[registry]]\nprefix = \"*.x.example\"\nlocation = \"r.example\"\n",
            3,
            &["location", "one by one"],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\n[[registry]]\nlocation = \"r.example\"\n",
            3,
            &["line 1", "join"],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\ninsecure = \"yes\"\n",
            3,
            &["bool"],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\nproxy = \"socks5://u:hunter2@p\"\n",
            3,
            &["proxy", "http or https"],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\ninsecure = true\nca = \"x.pem\"\n",
            4,
            &["ca", "plain HTTP"],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"m.example\"\npull-from-mirror = \"never\"\n",
            5,
            &["never", "digest-only"],
        ),
        (
            "[[registry]]\nlocation = \"r.example\"\ninsecure = true\n[[registry]]\nlocation = \"s.example\"\n\
             [[registry.mirror]]\nlocation = \"r.example\"\nproxy = \"none\"\n",
            6,
            &["r.example", "line 1", "say the same"],
        ),
        ("[[registry]\n", 1, &[]),
    ] {
        let error = refused(text);
        let begin = format!("/etc/vmlet/registries.conf, line {line}: ");
        assert!(error.starts_with(&begin), "{text}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_file_of_authorities_that_cannot_be_used_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("registries.conf");
    std::fs::write(&file, "[[registry]]\nlocation = \"r.example\"\nca = \"ca.pem\"\n").expect("writes");
    let error = Registries::read(&file).expect_err("there is none").to_string();
    assert!(error.contains("line 1: ca of r.example"), "{error}");
    std::fs::write(dir.path().join("ca.pem"), "nothing\n").expect("writes");
    let error = Registries::read(&file).expect_err("there is none in it").to_string();
    assert!(error.contains("PEM"), "{error}");
}

#[test]
fn the_example_of_the_documentation_is_a_good_file() {
    let page = include_str!("../../../../../docs/registries.md");
    let block = |kind: &str| {
        let start = page.split_once(kind).expect("an example").1;
        start.split_once("```").expect("its end").0
    };
    let registries = parse(block("```toml\n"));
    assert_eq!(
        targets(&registries, "debian:12"),
        [
            "cache.example.org:5000/hub/library/debian",
            "far-cache.example.org/library/debian digests",
            "docker.io/library/debian own",
        ]
    );
    assert_eq!(registries.plain(&url("http://lab.example.org:5000/")), Some(true));
    assert!(registries.ca(&url("https://r.corp.example.org/")).is_some());
    let logins = crate::docker_config::DockerConfig::read(block("```json\n").as_bytes()).expect("logins");
    assert_eq!((logins.credentials.len(), logins.helpers.len()), (3, 1));
}
