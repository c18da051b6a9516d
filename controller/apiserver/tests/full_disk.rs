//! What the API does on a disk without room: a file system of its own, which the test fills.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use vmlet_apiserver::{ApiServer, Config};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A mounted tmpfs; gone with the value.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, and a word, where it may not be mounted.
    fn mount(size: &str) -> Option<Disk> {
        let dir = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Disk(dir)),
            Ok(output) => {
                println!("skipped: mount: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: mount: {error}");
                None
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("api")
    }

    /// Takes whatever room there is; the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = std::fs::File::create(&path).expect("a file");
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

async fn open(dir: &Path) -> ApiServer {
    ApiServer::open(Config::new(dir)).await.expect("opened")
}

async fn text(api: &ApiServer, method: &str, path: &str, body: Value) -> (u16, String) {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(body).expect("a request");
    let (parts, body) = api.service().oneshot(request).await.expect("answers").into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    (parts.status.as_u16(), String::from_utf8_lossy(&bytes).into_owned())
}

async fn ask(api: &ApiServer, method: &str, path: &str, body: Value) -> (u16, Value) {
    let (code, text) = text(api, method, path, body).await;
    (code, serde_json::from_str(&text).unwrap_or_default())
}

fn map(name: &str, size: usize) -> Value {
    let finalizers = json!(["test.io/hold"]);
    json!({"metadata": {"name": name, "finalizers": finalizers}, "data": {"a": "x".repeat(size)}})
}

/// Creates until no room is left; the refusal.
async fn create_until_refused(api: &ApiServer) -> Value {
    for n in 0..1000 {
        let (code, status) = ask(api, "POST", MAPS, map(&format!("late-{n}"), 100 << 10)).await;
        if code != 201 {
            return status;
        }
    }
    panic!("100 MiB were stored on a full disk");
}

#[tokio::test]
async fn on_a_full_disk_nothing_new_is_stored_but_everything_can_be_changed_and_deleted_until_there_is_room_again() {
    let Some(disk) = Disk::mount("64m") else { return };
    let api = open(&disk.data()).await;
    let names: Vec<String> = (0..300).map(|n| format!("early-{n}")).collect();
    for name in &names {
        let (code, status) = ask(&api, "POST", MAPS, map(name, 8 << 10)).await;
        assert_eq!(code, 201, "{status}");
    }
    assert_eq!(
        text(&api, "GET", "/readyz?verbose", Value::Null).await.1,
        "[+]storage ok\nok\n"
    );
    let filler = disk.fill();

    let refused = create_until_refused(&api).await;
    assert_eq!(
        (&refused["code"], &refused["reason"]),
        (&json!(507), &json!("InsufficientStorage")),
        "{refused}"
    );
    let message = refused["message"].as_str().unwrap_or_default();
    let dir = disk.data().display().to_string();
    assert!(message.contains(&dir) && message.contains("is full"), "{message}");
    let (code, grown) = ask(
        &api,
        "PATCH",
        &format!("{MAPS}/early-0"),
        json!({"data": {"b": "y".repeat(20 << 10)}}),
    )
    .await;
    assert_eq!(code, 507, "{grown}");
    let (code, ready) = text(&api, "GET", "/readyz", Value::Null).await;
    assert!(
        code == 500 && ready.starts_with("[-]storage failed: the disk"),
        "{ready}"
    );
    assert_eq!(text(&api, "GET", "/livez", Value::Null).await.0, 200);

    // A deletion is three changes here, and each is history: more than the reserve, were nothing of it used again.
    let mut held = names.iter();
    for name in held.by_ref().take(150) {
        go(&api, name).await;
    }
    api.close().await;
    drop(api);
    let api = open(&disk.data()).await;
    for name in held {
        go(&api, name).await;
    }
    assert_eq!(ask(&api, "POST", MAPS, map("new", 1)).await.0, 507);

    std::fs::remove_file(filler).expect("removed");
    let (code, ready) = text(&api, "GET", "/readyz", Value::Null).await;
    assert_eq!(code, 200, "{ready}");
    assert_eq!(ask(&api, "POST", MAPS, map("new", 1)).await.0, 201);
    api.close().await;
}

/// Everything that a deletion takes.
async fn go(api: &ApiServer, name: &str) {
    let path = format!("{MAPS}/{name}");
    let (code, answer) = ask(api, "PATCH", &path, json!({"metadata": {"labels": {"going": "yes"}}})).await;
    assert_eq!(code, 200, "{name}: {answer}");
    let (code, answer) = ask(api, "DELETE", &path, Value::Null).await;
    assert_eq!(code, 200, "{name}: {answer}");
    let (code, answer) = ask(api, "PATCH", &path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200, "{name}: {answer}");
    assert_eq!(ask(api, "GET", &path, Value::Null).await.0, 404);
}
