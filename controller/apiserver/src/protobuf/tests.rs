use serde_json::{Value, json};

use super::{DecodeError, decode};

/// A length-delimited field.
fn chunk(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 128 && number < 16);
    let mut out = vec![number << 3 | 2, bytes.len() as u8];
    out.extend(bytes);
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [chunk(1, api_version.as_bytes()), chunk(2, kind.as_bytes())].concat();
    let mut out = b"k8s\0".to_vec();
    out.extend(chunk(1, &meta));
    out.extend(chunk(2, raw));
    out.extend(chunk(3, b""));
    out.extend(chunk(4, b""));
    out
}

/// What kubectl create namespace sends: every field that is no pointer, empty or not.
fn namespace(name: &str) -> Vec<u8> {
    let meta = [
        chunk(1, name.as_bytes()),
        chunk(2, b""),
        chunk(3, b""),
        chunk(4, b""),
        chunk(5, b""),
        chunk(6, b""),
        vec![7 << 3, 0],
        chunk(8, b""),
    ]
    .concat();
    let raw = [chunk(1, &meta), chunk(2, b""), chunk(3, &chunk(1, b""))].concat();
    body("v1", "Namespace", &raw)
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

#[test]
fn bodies_of_the_real_client_mean_what_their_json_says() {
    let mut count = 0;
    for line in include_str!("bodies.txt").lines().filter(|line| !line.starts_with('#')) {
        let (hex, wanted) = line.split_once(' ').expect("two columns");
        let wanted: Value = serde_json::from_str(wanted).expect("JSON");
        assert_eq!(decode(&unhex(hex)), Ok(wanted));
        count += 1;
    }
    assert_eq!(count, 13);
}

#[test]
fn a_namespace_keeps_its_name_and_no_empty_fields() {
    let wanted = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "play"}});
    assert_eq!(decode(&namespace("play")), Ok(wanted));
}

#[test]
fn bytes_become_base64_and_an_empty_value_of_a_map_stays() {
    let full = [chunk(1, b"key"), chunk(2, &[0, 255])].concat();
    let raw = [chunk(2, &full), chunk(2, &chunk(1, b"void")), chunk(3, b"Opaque")].concat();
    let secret = decode(&body("v1", "Secret", &raw)).expect("a secret");
    assert_eq!(secret["data"], json!({"key": "AP8=", "void": ""}));
    assert_eq!(secret["type"], "Opaque");
}

#[test]
fn a_pointer_that_was_sent_as_zero_stays() {
    let raw = [vec![1 << 3, 0], vec![3 << 3, 0], chunk(4, b"Background")].concat();
    let options = decode(&body("meta.k8s.io/v1", "DeleteOptions", &raw)).expect("options");
    assert_eq!(options["gracePeriodSeconds"], 0);
    assert_eq!(options["orphanDependents"], false);
    assert_eq!(options["propagationPolicy"], "Background");
}

#[test]
fn times_are_rfc_3339_with_seconds_or_microseconds() {
    // 1_000_000_000 seconds, 5_000 nanoseconds
    let moment = [0x08, 0x80, 0x94, 0xeb, 0xdc, 0x03, 0x10, 0x88, 0x27];
    let raw = [chunk(6, &moment), chunk(10, &moment)].concat();
    let event = decode(&body("v1", "Event", &raw)).expect("an event");
    assert_eq!(event["firstTimestamp"], "2001-09-09T01:46:40Z");
    assert_eq!(event["eventTime"], "2001-09-09T01:46:40.000005Z");
}

#[test]
fn negative_numbers_keep_their_sign() {
    let raw = [&[8 << 3][..], &[0xff; 9], &[1]].concat();
    let event = decode(&body("v1", "Event", &raw)).expect("an event");
    assert_eq!(event["count"], -1);
}

#[test]
fn managed_fields_hold_their_json() {
    let entry = [chunk(1, b"kubectl"), chunk(7, &chunk(1, br#"{"f:data":{}}"#))].concat();
    // Field 17 needs two bytes.
    let mut meta = vec![0x8a, 0x01, entry.len() as u8];
    meta.extend(entry);
    let map = decode(&body("v1", "ConfigMap", &chunk(1, &meta))).expect("a config map");
    let wanted = json!([{"manager": "kubectl", "fieldsV1": {"f:data": {}}}]);
    assert_eq!(map["metadata"]["managedFields"], wanted);
}

#[test]
fn kinds_that_are_not_read_are_named_in_the_error() {
    let error = decode(&body("v1", "Pod", b"")).expect_err("no pods");
    let wanted = DecodeError::UnknownKind {
        api_version: "v1".into(),
        kind: "Pod".into(),
    };
    assert_eq!(error, wanted);
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let raw = chunk(3, &[0xff]);
    assert!(matches!(
        decode(&body("v1", "Secret", &raw)),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn a_body_cut_anywhere_is_an_error_or_an_object_but_no_panic() {
    let whole = namespace("play");
    for end in 0..whole.len() {
        if let Ok(object) = decode(&whole[..end]) {
            assert!(object.is_object());
        }
    }
    for line in include_str!("bodies.txt").lines().filter(|line| !line.starts_with('#')) {
        let whole = unhex(line.split(' ').next().unwrap_or_default());
        for place in 0..whole.len() {
            let mut broken = whole.clone();
            broken[place] ^= 0xff;
            let _ = decode(&broken);
            let _ = decode(&whole[..place]);
        }
    }
    assert!(matches!(decode(b"{}"), Err(DecodeError::Malformed(_))));
}

proptest::proptest! {
    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>, which in 0_usize..11) {
        let kinds = [
            ("v1", "Namespace"), ("v1", "Secret"), ("v1", "ConfigMap"), ("v1", "ServiceAccount"), ("v1", "Event"),
            ("events.k8s.io/v1", "Event"), ("coordination.k8s.io/v1", "Lease"),
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
            ("authentication.k8s.io/v1", "SelfSubjectReview"), ("v1", "DeleteOptions"),
        ];
        let (api_version, kind) = kinds[which];
        let short = &bytes[..bytes.len().min(127)];
        if let Ok(object) = decode(&body(api_version, kind, short)) {
            assert_eq!(object["kind"], Value::from(kind));
        }
        let _ = decode(&bytes);
    }
}
