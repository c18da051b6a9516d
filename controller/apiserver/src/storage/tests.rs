#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::json;

use super::*;

fn key(name: &str) -> Key {
    Key {
        resource: Arc::from("g.io/things"),
        namespace: "n".into(),
        name: name.into(),
    }
}

fn create(name: &str) -> Change {
    let object = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"size": 1}});
    Change::Create {
        key: key(name),
        object,
        expires: None,
    }
}

fn update(object: Value) -> Change {
    Change::Update {
        key: key(object["metadata"]["name"].as_str().unwrap()),
        base: version(&object),
        object,
        expires: None,
    }
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn versions_go_on_rising_after_a_deletion_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let made = store.write(vec![create("a")]).await.unwrap().remove(0);
    let base = version(&made);
    let gone = store
        .write(vec![Change::Remove {
            key: key("a"),
            base,
            object: made,
        }])
        .await
        .unwrap()
        .remove(0);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_none());
    let again = store.write(vec![create("a")]).await.unwrap().remove(0);
    assert!(version(&gone) > base && version(&again) > version(&gone));
}

#[tokio::test]
async fn concurrent_writers_all_get_versions_of_their_own_and_all_are_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let names: Vec<String> = (0..100).map(|n| format!("o{n}")).collect();
    let writes = names.iter().map(|name| store.write(vec![create(name)]));
    let objects: Vec<Value> = futures::future::try_join_all(writes)
        .await
        .unwrap()
        .into_iter()
        .flatten()
        .collect();
    let versions: std::collections::BTreeSet<u64> = objects.iter().map(version).collect();
    assert_eq!(versions.len(), 100);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    for (name, object) in names.iter().zip(&objects) {
        assert_eq!(store.get(&key(name)).await.unwrap().unwrap().value().unwrap(), *object);
    }
}

#[tokio::test]
async fn a_refused_change_stores_nothing_of_its_write_and_uses_no_version() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let made = store.write(vec![create("a")]).await.unwrap().remove(0);
    let stale = Change::Update {
        key: key("a"),
        base: version(&made) - 1,
        object: made.clone(),
        expires: None,
    };
    let result = store.write(vec![create("b"), stale]).await;
    assert!(matches!(result, Err(WriteError::Changed)), "{result:?}");
    assert!(store.get(&key("b")).await.unwrap().is_none());
    assert!(matches!(store.write(vec![create("a")]).await, Err(WriteError::Exists)));
    let missing = store
        .write(vec![Change::RequireNamespace("n".into()), create("c")])
        .await;
    assert!(matches!(missing, Err(WriteError::NamespaceMissing(_))), "{missing:?}");
    assert_eq!(store.version(), version(&made));
}

#[tokio::test]
async fn history_is_the_same_from_memory_and_from_the_file_and_says_when_it_no_longer_reaches_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let start = store.version();
    for name in ["a", "b"] {
        store.write(vec![create(name)]).await.unwrap();
    }
    let names = |batch: Batch| match batch {
        Batch::Changes { events, upto } => (events.iter().map(|e| e.name.clone()).collect::<Vec<_>>(), upto),
        Batch::TooOld => panic!("too old"),
    };
    let resource = Some(Arc::from("g.io/things"));
    let from_memory = names(store.changes(start, resource.clone(), None).await.unwrap());
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    let from_file = names(store.changes(start, resource.clone(), None).await.unwrap());
    assert_eq!(from_memory, (vec!["a".to_owned(), "b".to_owned()], start + 2));
    assert_eq!(from_file, from_memory);
    assert!(matches!(store.changes(1, resource, None).await.unwrap(), Batch::TooOld));
}

fn command(
    changes: Vec<Change>,
) -> (
    writer::Command,
    tokio::sync::oneshot::Receiver<Result<Vec<Value>, WriteError>>,
) {
    let (reply, answer) = tokio::sync::oneshot::channel();
    (writer::Command { changes, reply }, answer)
}

#[tokio::test]
async fn a_write_that_finds_no_room_takes_nothing_from_the_others_of_its_commit_with_a_reserve_and_without() {
    for with_reserve in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (db, first) = prepare(&dir.path().join("objects.db")).unwrap();
        // SQLite's own bound: the same answer as that of a full disk.
        db.query_row("PRAGMA max_page_count = 64", [], |_| Ok(())).unwrap();
        let tail = Arc::new(history::Tail::new(first));
        let mut state = writer::State::new(db, first, tail, Reserve::open(dir.path()), dir.path());
        let mut commit = |group: Vec<Change>| {
            let (commands, answers): (Vec<_>, Vec<_>) = group.into_iter().map(|c| command(vec![c])).unzip();
            state.commit(commands);
            answers
                .into_iter()
                .map(|mut a| a.try_recv().unwrap())
                .collect::<Vec<_>>()
        };
        let made = commit(vec![create("a"), create("b")]);
        let mut group: Vec<Change> = made
            .into_iter()
            .map(|object| update(object.unwrap().remove(0)))
            .collect();
        let mut large = create("large");
        if let Change::Create { object, .. } = &mut large {
            object["spec"]["text"] = "x".repeat(1 << 20).into();
        }
        group.insert(1, large);
        if !with_reserve {
            std::fs::remove_file(dir.path().join("reserve")).unwrap();
        }
        let mut answers = commit(group);
        assert!(matches!(answers.remove(1), Err(WriteError::Full(_))));
        drop(state);
        let store = Store::open(dir.path()).unwrap();
        for (name, answer) in ["a", "b"].into_iter().zip(answers) {
            let stored = store.get(&key(name)).await.unwrap().unwrap();
            assert_eq!(stored.value().unwrap(), answer.unwrap().remove(0));
        }
        assert!(store.get(&key("large")).await.unwrap().is_none());
        assert_eq!((store.version(), store.trouble().await), (first + 4, None));
    }
}

#[test]
fn the_reserve_gives_its_space_step_by_step_and_is_whole_again_when_there_is_room() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let size = || std::fs::metadata(dir.path().join("reserve")).unwrap().blocks() * 512;
    let mut reserve = Reserve::open(dir.path());
    assert!(size() >= reserve::SIZE && !reserve.short());
    let mut steps = 0;
    while reserve.release() {
        steps += 1;
        assert!(size() < reserve::SIZE && reserve.short());
    }
    assert_eq!((steps, size()), (16, 0));
    assert!(!reserve.look() && size() >= reserve::SIZE);
    // What a copy left as a hole is no space.
    std::fs::remove_file(dir.path().join("reserve")).unwrap();
    let file = std::fs::File::create(dir.path().join("reserve")).unwrap();
    file.set_len(reserve::SIZE).unwrap();
    assert!(!Reserve::open(dir.path()).short() && size() >= reserve::SIZE);
}
