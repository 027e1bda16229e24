//! The command line, as a shell calls it: the real binary, its arguments and variables, what it prints where, and its exit code.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Instant,
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{PATIENCE, Server, nexxus, signal};

const NOTES: &str = r#"{ "id": "notes", "name": "Notes", "schema": { "note": {
    "text": { "type": "string", "required": true }, "n": { "type": "number", "filterable": true } } } }"#;

/// A shell in a directory of its own.
struct Shell {
    dir: TempDir,
    variables: Vec<(String, String)>,
    /// Said with every command that talks to a server.
    target: Vec<String>,
}

/// What a command said, and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Shell {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), variables: Vec::new(), target: Vec::new() }
    }

    /// One that names the server's data directory, and the application.
    fn at(server: &Server) -> Self {
        let data = server.dir().display().to_string();
        Self { target: ["--data", &data, "--app", "notes"].map(str::to_owned).to_vec(), ..Self::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = nexxus();
        command.args(arguments).args(&self.target).current_dir(self.dir.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = self.command(arguments).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("a stdin");
        // Who does not read it may be gone by now.
        let _unread = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Said { code: output.status.code().expect("a code"), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs it again until it says this: what was accepted takes a moment until it is seen.
    fn wait_for(&self, arguments: &[&str], part: &str) -> Said {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.run(arguments);
            if said.out.contains(part) {
                return said;
            }
            assert!(Instant::now() < deadline, "{arguments:?} does not say {part}: {said:?}");
        }
    }
}

impl Said {
    /// What it printed, when it ended with this code, and was silent elsewhere.
    #[track_caller]
    fn expect(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        if code == 0 { self.out } else { self.err }
    }

    #[track_caller]
    fn json(self) -> Value {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn fails(self, code: i32, part: &str) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{self:?}");
        assert!(self.err.contains(part), "{self:?} does not say {part}");
    }
}

/// A command that goes on until it is stopped.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    /// Started, and at work: it says so on stderr.
    fn start(mut command: Command, at_work: &str) -> Self {
        let mut child = command.spawn().expect("it starts");
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("a stdout"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().expect("a stderr"));
        while !said.contains(at_work) {
            assert_ne!(stderr.read_line(&mut said).expect("a line"), 0, "it ended: {said}");
        }
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(drop));
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    fn interrupt(mut self) -> Option<i32> {
        signal(self.child.id(), "INT");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

async fn server_with_notes() -> (Server, Shell) {
    let server = Server::start().await;
    let shell = Shell::at(&server);
    assert_eq!(shell.run_with(&["app", "apply", "-"], NOTES).expect(0), "application notes made\n");
    (server, shell)
}

#[tokio::test]
async fn applications_are_made_changed_shown_and_deleted() {
    let server = Server::start().await;
    let shell = Shell::at(&server);
    assert!(shell.run(&["app", "list"]).expect(0).starts_with("no applications"));
    assert_eq!(shell.run(&["app", "list", "--json"]).json(), json!({ "items": [] }));
    let file = shell.file("notes.json", NOTES);
    assert_eq!(shell.run(&["app", "apply", "notes.json"]).expect(0), "application notes made\n");
    assert_eq!(shell.run(&["app", "apply", &format!("@{}", file.display())]).expect(0), "application notes changed\n");
    let renamed = NOTES.replace("\"Notes\"", "\"Our notes\"");
    assert_eq!(shell.run_with(&["app", "apply", "-", "--json"], &renamed).json()["name"], "Our notes");
    let listed = shell.run(&["app", "list"]).expect(0);
    assert!(listed.starts_with("id     name       models") && listed.contains("notes  Our notes  note"), "{listed}");
    assert_eq!(shell.run(&["app", "show", "notes"]).json()["schema"]["note"]["n"]["type"], "number");
    shell.run(&["app", "show", "other"]).fails(1, "there is no application other");

    // What stored documents do not fit is refused, unless forced.
    shell.run(&["create", "note", r#"{"id":"a","text":"x"}"#]).expect(0);
    shell.wait_for(&["query", "note"], "a ");
    let narrowed = NOTES.replace("\"string\"", "\"number\"");
    shell.run_with(&["app", "apply", "-"], &narrowed).fails(1, "/schema/note/text");
    assert_eq!(shell.run_with(&["app", "apply", "-", "--force"], &narrowed).expect(0), "application notes changed\n");

    for (input, code, part) in [
        ("{", 2, "- is not JSON"),
        (r#"{ "name": "x" }"#, 2, "names no application"),
        (r#"{ "id": "bad", "name": "x", "schema": { "m": { "f": { "type": "int" } } } }"#, 1, "/schema/m/f/type"),
    ] {
        shell.run_with(&["app", "apply", "-"], input).fails(code, part);
    }
    shell.run(&["app", "apply", "nowhere.json"]).fails(2, "cannot read nowhere.json");
    assert_eq!(shell.run(&["app", "delete", "notes"]).expect(0), "application notes deleted\n");
    shell.run(&["app", "delete", "notes"]).fails(1, "there is no application notes");
}

#[tokio::test]
async fn documents_are_created_found_patched_and_deleted() {
    let (_server, shell) = server_with_notes().await;
    shell.file("one.json", r#"{ "id": "one", "text": "from a file", "n": 1 }"#);
    let created = shell.run(&["create", "note", "@one.json"]).expect(0);
    assert!(created.starts_with("created note one  (change "), "{created}");
    let created =
        shell.run_with(&["create", "note", "-", "--json"], r#"{"id":"two","text":"from stdin","n":2}"#).json();
    assert_eq!((created["id"].as_str(), created["changeId"].is_string()), (Some("two"), true));
    shell.run(&["create", "note", r#"{"id":"three","text":"as an argument","n":3}"#]).expect(0);
    shell.wait_for(&["query", "note", "--json"], "three");

    let shown = shell.run(&["get", "note", "one"]).expect(0);
    assert!(shown.starts_with("id         one\nversion    1\n"), "{shown}");
    let found = shell.run(&["query", "note", "--filter", r#"{"n":{"$gte":2}}"#, "--sort", "-n", "--json"]).json();
    assert_eq!((&found["items"][0]["id"], &found["items"][1]["id"]), (&json!("three"), &json!("two")));
    let page = shell.run(&["query", "note", "--sort", "n", "--limit", "2"]);
    assert!(page.err.starts_with("there is more: --cursor "), "{page:?}");
    let cursor = page.err.trim().rsplit(' ').next().expect("a cursor");
    let rest = shell.run(&["query", "note", "--sort", "n", "--cursor", cursor]).expect(0);
    assert!(rest.lines().count() == 2 && rest.contains("as an argument"), "{rest}");
    assert_eq!(shell.run(&["query", "note", "--filter", r#"{"n":9}"#]).expect(0), "nothing found\n");

    shell.file("patch.json", r#"[{ "op": "replace", "path": "/text", "value": "by a JSON Patch" }]"#);
    for patch in [r#"{"n":10}"#, r#"[{"op":"incr","path":["n"],"value":[5]}]"#, "@patch.json"] {
        let patched = shell.run(&["patch", "note", "one", patch]).expect(0);
        assert!(patched.starts_with("patched note one  (change "), "{patched}");
    }
    let one = shell.wait_for(&["get", "note", "one", "--json"], "\"version\": 4").json();
    assert_eq!((&one["n"], &one["text"]), (&json!(15), &json!("by a JSON Patch")));
    let deleted = shell.run(&["delete", "note", "one", "--json"]).json();
    assert_eq!(deleted["id"], "one");
    shell.run(&["delete", "note", "one"]).fails(1, "there is no note one");
    shell.run(&["get", "note", "one"]).fails(1, "there is no note one");

    for (arguments, code, part) in [
        (&["create", "note", r#"{"txt":1}"#][..], 1, "/txt"),
        (&["create", "note", "{"], 2, "the document is not JSON"),
        (&["create", "note", "@nowhere"], 2, "cannot read nowhere"),
        (&["create", "page", "{}"], 1, "page"),
        (&["patch", "note", "two", "]"], 2, "the patch is not JSON"),
        (&["query", "note", "--filter", "x"], 2, "the filter is not JSON"),
        (&["query", "note", "--filter", r#"{"n":{"$near":1}}"#], 1, "$near"),
        (&["get", "note", ".."], 2, "`..` is no name"),
    ] {
        shell.run(arguments).fails(code, part);
    }
}

#[tokio::test]
async fn users_and_their_tokens() {
    let (server, shell) = server_with_notes().await;
    let log_in = async |name: &str, password: &str| {
        let anonymous = server.known_app("notes").anonymous();
        anonymous.call(Method::POST, "/user/login", json!({ "username": name, "password": password })).await
    };
    assert_eq!(shell.run(&["user", "list"]).expect(0), "no users\n");
    assert_eq!(shell.run(&["user", "add", "anna", "--password", " anna's secret "]).expect(0), "user anna added\n");
    log_in("anna", " anna's secret ").await.expect(StatusCode::OK);
    let said = shell.run(&["user", "add", "ben", "--details", "{}"]).expect(0);
    let made_up = said.strip_prefix("user ben added\npassword: ").expect("a password").trim();
    log_in("ben", made_up).await.expect(StatusCode::OK);
    shell.run(&["user", "add", "anna"]).fails(1, "there is a user anna already");
    assert!(shell.run(&["user", "show", "ben"]).expect(0).starts_with("username   ben\nid "));
    assert_eq!(shell.run(&["user", "list", "--json"]).json()["items"].as_array().map(Vec::len), Some(2));

    assert_eq!(
        shell.run_with(&["user", "passwd", "anna", "--password", "-"], "another secret\n").expect(0),
        "user anna has a new password\n"
    );
    log_in("anna", "another secret").await.expect(StatusCode::OK);
    log_in("anna", " anna's secret ").await.problem(401);

    let token = shell.run(&["token", "create", "--user", "anna", "--device", "phone", "--ttl", "2h"]).expect(0);
    let anna = Shell::new().with("NEXXUS_URL", &server.url).with("NEXXUS_TOKEN", token.trim());
    // The token names the application and the device.
    anna.run(&["create", "note", r#"{"id":"hers","text":"mine"}"#]).expect(0);
    anna.wait_for(&["get", "note", "hers"], "userId ");
    anna.run(&["user", "list"]).fails(1, "admin");
    shell.file("anna.token", &token);
    shell.run(&["get", "note", "hers", "--token", "@anna.token"]).expect(0);
    let session = shell.run(&["token", "create", "--user", "ben", "--json"]).json();
    assert!(session["token"].is_string() && session["expiresAt"].is_string(), "{session}");

    assert_eq!(shell.run(&["user", "delete", "anna"]).expect(0), "user anna deleted\n");
    for arguments in
        [&["user", "show", "anna"][..], &["user", "delete", "anna"], &["token", "create", "--user", "anna"]]
    {
        shell.run(arguments).fails(1, "there is no user anna in notes");
    }
    anna.run(&["get", "note", "hers"]).fails(1, "nexxus: ");
}

#[tokio::test]
async fn the_server_is_found_by_flags_variables_or_its_directory() {
    let (server, shell) = server_with_notes().await;
    shell.run(&["create", "note", r#"{"id":"a","text":"x"}"#]).expect(0);
    shell.wait_for(&["query", "note"], "a ");
    let get = ["get", "note", "a"];
    let variables = || Shell::new().with("NEXXUS_URL", &server.url).with("NEXXUS_TOKEN", &server.admin_token);
    variables().with("NEXXUS_APP", "notes").run(&get).expect(0);
    variables().run(&get).fails(2, "which application?");
    // Flags win over variables.
    variables().with("NEXXUS_APP", "other").run(&[&get[..], &["--app", "notes"]].concat()).expect(0);
    variables().run(&[&get[..], &["--app", "notes", "--token", "wrong"]].concat()).fails(1, "nexxus: ");
    let flags = ["--url", &server.url, "--app", "notes"];
    Shell::new().run(&[&get[..], &flags].concat()).fails(1, "nexxus: ");
    Shell::new().run(&[&get[..], &flags, &["--token", &server.admin_token]].concat()).expect(0);
    // By a configuration that names the data directory, and by one that lies where the command is called.
    let here = Shell::new();
    let settings = format!("[data]\ndir = {:?}\n", server.dir().display().to_string());
    here.file("nexxus.toml", &settings);
    here.run(&[&get[..], &["--app", "notes"]].concat()).expect(0);
    let other = Shell::new();
    other.file("other.toml", &settings);
    other.run(&[&get[..], &["--app", "notes", "--config", "other.toml"]].concat()).expect(0);
    other.run(&[&get[..], &["--config", "none.toml"]].concat()).fails(2, "cannot read none.toml");
    // Nobody there, and no server at all.
    let away = ["--url", "http://127.0.0.1:1", "--app", "notes"];
    other.run(&[&get[..], &away].concat()).fails(1, "is the server running?");
    other.run(&[&get[..], &["--url", "nowhere"]].concat()).fails(2, "is not the URL of a server");
}

#[tokio::test]
async fn tail_prints_changes_as_they_come() {
    let (server, shell) = server_with_notes().await;
    shell.file("big.json", r#"{ "n": { "$gte": 10 } }"#);
    let all = Running::start(shell.command(&["tail", "note"]), "listening on app:notes:model:note ");
    let big = ["tail", "note", "--filter", "@big.json", "--json", "--device", "desk"];
    let big = Running::start(shell.command(&big), "as device desk");
    for (id, n) in [("one", 1), ("two", 10)] {
        shell.run(&["create", "note", &json!({ "id": id, "text": "news", "n": n }).to_string()]).expect(0);
    }
    for id in ["one", "two"] {
        let line = all.line();
        assert!(line.contains(id) && line.contains("news"), "{line}");
    }
    let frame: Value = serde_json::from_str(&big.line()).expect("JSON");
    assert_eq!((&frame["event"], &frame["data"]["id"]), (&json!("model_created"), &json!("two")));
    shell.run(&["patch", "note", "one", r#"{"n":20}"#]).expect(0);
    let frame: Value = serde_json::from_str(&big.line()).expect("JSON");
    assert_eq!((&frame["document"]["n"], &frame["metadata"]["version"]), (&json!(20), &json!(2)));
    assert!(all.line().contains("20"));
    assert_eq!(all.interrupt(), Some(0));
    // It goes on where the device was.
    assert_eq!(big.interrupt(), Some(0));
    shell.run(&["create", "note", r#"{"id":"three","text":"missed","n":30}"#]).expect(0);
    let since = frame["offset"].as_str().expect("an offset").to_owned();
    let again = ["tail", "note", "--filter", "@big.json", "--json", "--device", "desk", "--since", &since];
    let again = Running::start(shell.command(&again), "as device desk");
    let frame: Value = serde_json::from_str(&again.line()).expect("JSON");
    assert_eq!(frame["data"]["id"], "three");
    assert_eq!(again.interrupt(), Some(0));
    shell.run(&["tail", "note", "--since", "last"]).fails(2, "--device");
    shell.run(&["tail", "page"]).fails(1, "page");
    drop(server);
}

#[tokio::test]
async fn queues_are_listed_and_their_dead_letters() {
    let (_server, shell) = server_with_notes().await;
    let listed = shell.run(&["queue", "list"]).expect(0);
    for part in ["name ", "ready", "dead", "\nwriter ", "\ntransport-manager "] {
        assert!(listed.contains(part), "{listed}");
    }
    let queues = shell.run(&["queue", "list", "--json"]).json();
    assert!(queues["items"].as_array().expect("items").iter().any(|queue| queue["name"] == "writer"), "{queues}");
    assert_eq!(shell.run(&["queue", "dead", "list", "writer"]).expect(0), "no dead messages\n");
    assert_eq!(shell.run(&["queue", "dead", "list", "writer", "--json"]).json(), json!({ "items": [] }));
    assert_eq!(shell.run(&["queue", "dead", "drop", "writer", "--all"]).expect(0), "0 messages of writer dropped\n");
    let id = "01M8860VS2SNXP3J4GMQVBZ0N3";
    let retried = shell.run(&["queue", "dead", "retry", "writer", id]);
    assert_eq!((retried.code, retried.err.as_str()), (1, "nexxus: 1 of them is no dead message of writer\n"));
    shell.run(&["queue", "dead", "show", "writer", id]).fails(1, "there is no dead letter");
    shell.run(&["queue", "dead", "list", "nowhere"]).fails(1, "there is no queue nowhere");
}

#[test]
fn a_port_that_is_taken_is_told_with_its_setting() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let listen = taken.to_string();
    Shell::new().run(&["serve", "--listen", &listen]).fails(1, "api.listen or --listen names another");
    Shell::new()
        .with("NEXXUS_WORKERS__WEBSOCKET__PORT", &taken.port().to_string())
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .fails(1, "workers.websocket.port names another");
}

#[test]
fn settings_are_checked_and_shown() {
    let shell = Shell::new();
    assert_eq!(shell.run(&["config", "check"]).expect(0), "the configuration is valid\n");
    let file =
        shell.file("nexxus.toml", "[auth]\nadmin_token = \"very-secret-admin-token\"\n[devices]\nkeep_for = \"5m\"\n");
    assert_eq!(shell.run(&["config", "check", "--json"]).json(), json!({ "valid": true }));
    let show = |shell: &Shell, key: &str| {
        let shown = shell.run(&["config", "show"]).expect(0);
        assert!(!shown.contains("very-secret"), "{shown}");
        let line = shown.lines().find(|line| line.split(' ').next() == Some(key)).expect(key);
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(show(&shell, "auth.admin_token"), "auth.admin_token \"***\" nexxus.toml, line 2");
    assert_eq!(show(&shell, "devices.keep_for"), "devices.keep_for \"5m\" nexxus.toml, line 4");
    assert_eq!(show(&shell, "auth.token_ttl").rsplit(' ').next(), Some("default"));
    let shown = shell.run(&["config", "show", "--json"]).json();
    assert!(!shown.to_string().contains("very-secret"), "{shown}");
    let shell = shell.with("NEXXUS_DEVICES__KEEP_FOR", "7m");
    assert_eq!(show(&shell, "devices.keep_for"), "devices.keep_for \"7m\" variable NEXXUS_DEVICES__KEEP_FOR");
    let listen = shell.run(&["config", "show", "--listen", "127.0.0.1:4000"]).expect(0);
    assert!(listen.lines().any(|line| line.starts_with("api.listen ") && line.ends_with("flag --listen")), "{listen}");

    let check = |text: &str, parts: &[&str]| {
        std::fs::write(&file, text).expect("written");
        for command in [&["config", "check"][..], &["serve"], &["app", "list"]] {
            let said = Shell::new().run(&[command, &["--config", &file.display().to_string()]].concat()).expect(2);
            parts.iter().for_each(|part| assert!(said.contains(part), "{said} does not say {part}"));
        }
    };
    check("[devices]\nkeepfor = \"5m\"\n", &["devices.keepfor", "nexxus.toml, line 2", "keep_for"]);
    check("[device]\nkeep_for = \"5m\"\n", &["device.keep_for", "the sections are api"]);
    check("[devices]\nkeep_for = 5\n", &["devices.keep_for", "a text in quotes"]);
    check("[registry]\nadapter = \"etcd\"\n", &["registry.adapter", "there is no adapter \"etcd\"", "sled"]);
    check("[devices\n", &["nexxus.toml"]);
    let wrong = Shell::new().with("NEXXUS_LIMITS__BODYBYTES", "1").run(&["config", "check"]).expect(2);
    assert!(wrong.contains("NEXXUS_LIMITS__BODYBYTES") && wrong.contains("body_bytes"), "{wrong}");
}

#[test]
fn completions_and_usage() {
    let shell = Shell::new();
    for name in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = shell.run(&["completions", name]).expect(0);
        assert!(script.contains("serve") && script.contains("completions"), "{name}");
    }
    let help = shell.run(&["--help"]).expect(0);
    for command in
        ["serve", "app", "user", "token", "get", "query", "create", "patch", "delete", "tail", "queue", "config"]
    {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))), "{help}");
    }
    assert_eq!(shell.run(&["--version"]).expect(0), concat!("nexxus ", env!("CARGO_PKG_VERSION"), "\n"));
    for arguments in [&["nothing"][..], &["get", "note"], &["query", "note", "--limit", "x"], &["completions", "dos"]] {
        shell.run(arguments).fails(2, "error: ");
    }
    // Nobody reads: no failure.
    let mut child = shell.command(&["completions", "zsh"]).spawn().expect("it starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
