//! `nexxus doctor` on the data of a real server: refused while it runs, and what a server promises after a repair.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Output,
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Server, User, nexxus};

fn doctor(dir: &Path, flags: &[&str]) -> Output {
    let mut command = nexxus();
    command.arg("doctor").arg("--data").arg(dir).args(flags).current_dir(dir);
    command.output().expect("it runs")
}

/// A server that is expected not to start.
fn serve(dir: &Path) -> Output {
    let mut command = nexxus();
    command.arg("serve").arg("--data").arg(dir).args(["--listen", "127.0.0.1:0"]);
    command.env("NEXXUS_WORKERS__WEBSOCKET__PORT", "0").output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first segment of the journal.
fn first_segment(dir: &Path) -> PathBuf {
    dir.join("journal/00000000000000000001.journal")
}

/// Changes a byte of a change in the middle; the command that led to it stands before it.
fn damage(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let mut bytes = vec![0; 16 << 10];
    let n_read = file.read_at(&mut bytes, 4096).expect("reads");
    let at = bytes[..n_read].windows(9).rposition(|window| window == b"note five").expect("a change of the log");
    file.write_all_at(b"?", 4096 + at as u64).expect("written");
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_stops_the_start_with_a_sentence() {
    let server = Server::start().await;
    let second = serve(server.dir());
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains("is in use by process ") && said.contains("journal"), "{said}");
    let below_a_file = server.dir().join("format/data");
    let refused = serve(&below_a_file);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains(&below_a_file.display().to_string()), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn a_damaged_journal_is_explained_repaired_and_served_again() {
    let mut server = Server::start().await;
    let schema = json!({ "note": { "text": { "type": "string", "filterable": true } } });
    let app = server.app("notes", schema, json!({ "note": { "read": "public" } })).await;
    let anna = app.user("anna").await;
    anna.register_device("phone", json!(3600)).await;
    let mut phone = anna.connect("phone", None).await;
    phone.subscribe(json!({ "model": "note", "limit": 0 })).await;
    for word in ["one", "two", "three", "four", "five", "six", "seven"] {
        anna.create("note", json!({ "id": word, "text": format!("note {word}") })).await;
    }
    let seen = phone.next().await["offset"].as_str().expect("an offset").to_owned();
    let dir = server.dir().to_owned();
    let refused = doctor(&dir, &["--repair"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("stop the server first"), "{}", text(&refused.stderr));

    assert_eq!(server.stop(), Some(0));
    let sound = doctor(&dir, &[]);
    assert_eq!(sound.status.code(), Some(0), "{}", text(&sound.stdout));
    assert!(text(&sound.stdout).contains("Everything is whole."), "{}", text(&sound.stdout));
    damage(&first_segment(&dir));
    let found = doctor(&dir, &[]);
    assert_eq!(found.status.code(), Some(1));
    let said = text(&found.stdout);
    for words in
        ["00000000000000000001.journal is damaged from byte", "changes of notes may be gone", "What a repair does:"]
    {
        assert!(said.contains(words), "{words} is missing in\n{said}");
    }
    // Without the sidecar the server has to read the segment, and meets it.
    fs::remove_file(first_segment(&dir).with_extension("index")).expect("removed");
    let refused = serve(&dir);
    assert_eq!(refused.status.code(), Some(1));
    for words in ["00000000000000000001.journal", "`nexxus doctor` explains what can be done"] {
        assert!(text(&refused.stderr).contains(words), "{}", text(&refused.stderr));
    }
    let repaired = doctor(&dir, &["--repair", "--json"]);
    assert_eq!(repaired.status.code(), Some(0), "{}", text(&repaired.stderr));
    let repaired: Value = serde_json::from_slice(&repaired.stdout).expect("JSON");
    assert_eq!(repaired["found"]["journal"]["affected"], json!(["notes"]));
    assert!(Path::new(repaired["aside"].as_str().expect("a directory")).is_dir());
    assert_eq!(doctor(&dir, &[]).status.code(), Some(0), "it is sound now");

    server.restart().await;
    let anna = User { app: server.again(&app), ..anna };
    let notes = anna.call(reqwest::Method::GET, "/model/note?sort=id", Value::Null).await.expect(StatusCode::OK);
    assert_eq!(notes["items"].as_array().expect("items").len(), 7, "no document is lost: {notes}");
    let mut phone = anna.connect("phone", Some(&seen)).await;
    assert_eq!(phone.next().await["event"], "resync_required", "its offset is of an epoch that is over");
    let (id, _) = anna.create("note", json!({ "text": "goes on" })).await;
    let created = phone.next().await;
    assert_eq!((&created["event"], &created["metadata"]["id"]), (&json!("model_created"), &json!(id)));
    assert!(created["offset"].as_str() > Some(&seen), "{} after {seen}", created["offset"]);
}
