//! `nexxus serve --demo`: a small application to look at, made through the public API like any other. Made once; a later start finds it
//! and changes nothing.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Exit,
    client::{Client, json_of},
    greeting::{Place, quoted},
    users,
};

/// Where the demo keeps its data, unless `--data` says otherwise.
pub(super) const DIRECTORY: &str = "nexxus-demo";

const DEFINITION: &str = include_str!("../../packaging/demo/tasks.json");
const APP: &str = "tasks";
/// The demo's tokens and devices are kept for a month.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// A user of the demo.
struct Person {
    name: &'static str,
    password: &'static str,
    device: &'static str,
    device_name: &'static str,
}

const PEOPLE: [Person; 2] = [
    Person { name: "anna", password: "anna-demo", device: "anna-phone", device_name: "Anna's phone" },
    Person { name: "ben", password: "ben-demo", device: "ben-laptop", device_name: "Ben's laptop" },
];

/// Makes what is not there yet; gives what to say about it.
pub(super) async fn prepare(place: &Place) -> Result<String, Exit> {
    let token = match &place.configured_token {
        Some(token) => token.clone(),
        None => read(&place.admin_token_file())?.trim().to_owned(),
    };
    let admin = Client::new(&place.api, Some(token))?.in_app(APP);
    let is_new = make_application(&admin).await?;
    let mut clients = Vec::new();
    for person in &PEOPLE {
        clients.push(make_person(&admin, place, person).await?);
    }
    if let (true, [anna, ben]) = (is_new, &*clients) {
        make_documents(anna, ben).await?;
    }
    Ok(said(place))
}

/// True when it was not there.
async fn make_application(admin: &Client) -> Result<bool, Exit> {
    match admin.get(&["application", APP]).await {
        Ok(_) => Ok(false),
        Err(error) if error.is_not_found() => {
            admin.post(&["application"], &json_of("the demo's application", DEFINITION)?).await?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// A client that acts as this user, on the user's device.
async fn make_person(admin: &Client, place: &Place, person: &Person) -> Result<Client, Exit> {
    let file = token_file(place, person);
    if let Ok(token) = fs::read_to_string(&file) {
        let client = Client::new(&place.api, Some(token.trim().to_owned()))?.in_app(APP);
        if client.get(&["user", "profile"]).await.is_ok() {
            return Ok(client);
        }
    }
    let user = match users::find(admin, person.name).await {
        Ok(user) => user,
        Err(Exit::Failed(_)) => {
            let body = json!({ "username": person.name, "password": person.password });
            admin.post(&["admin", "users"], &body).await?
        }
        Err(error) => return Err(error),
    };
    let token = make_token(admin, place, person, &users::id_of(&user)?).await?;
    write_secret(&file, &token)?;
    Ok(Client::new(&place.api, Some(token))?.in_app(APP))
}

/// Registers the user's device, and makes a token for it.
async fn make_token(admin: &Client, place: &Place, person: &Person, user: &str) -> Result<String, Exit> {
    let text = |body: Value| body["token"].as_str().unwrap_or_default().to_owned();
    let first = text(users::create_token(admin, user, None, None).await?);
    let client = Client::new(&place.api, Some(first))?.in_app(APP);
    let device = json!({ "id": person.device, "name": person.device_name, "keepFor": KEPT.as_secs() });
    client.post(&["device", "register"], &device).await?;
    Ok(text(users::create_token(admin, user, Some(person.device), Some(crate::config::Duration(KEPT))).await?))
}

async fn make_documents(anna: &Client, ben: &Client) -> Result<(), Exit> {
    let of_anna = [
        json!({ "id": "welcome", "title": "Open the console in two tabs", "status": "doing", "priority": 5, "tags": ["demo"] }),
        json!({ "id": "present", "title": "Find a present for Ben", "private": true, "tags": ["home"] }),
    ];
    let of_ben =
        [json!({ "id": "milk", "title": "Buy milk", "priority": 2, "due": "2030-01-01T09:00:00Z", "tags": ["home"] })];
    for task in of_anna {
        anna.post(&["model", "task"], &task).await?;
    }
    for task in of_ben {
        ben.post(&["model", "task"], &task).await?;
    }
    let comment = json!({ "id": "first", "task": "welcome", "text": "Side by side it is best" });
    ben.post(&["model", "comment"], &comment).await?;
    Ok(())
}

fn said(place: &Place) -> String {
    let Place { api, program, .. } = place;
    let mut between = Vec::new();
    for (index, Person { name, password, .. }) in PEOPLE.iter().enumerate() {
        let link = format!("{api}/#app={APP}&model=task&user={name}&password={password}");
        between.push([if index == 0 { "  Two tabs" } else { "" }.to_owned(), link]);
    }
    for (index, person) in PEOPLE.iter().enumerate() {
        let Person { name, password, device, .. } = person;
        let file = quoted(&token_file(place, person));
        let line = format!("{name:<4}  password {password:<9}  device {device:<10}  token in {file}");
        between.push([if index == 0 { "  Users" } else { "" }.to_owned(), line]);
    }
    let data = quoted(&place.data);
    let [anna, ben] = PEOPLE.each_ref().map(|person| quoted(&token_file(place, person)));
    let lines = place.lines_with(between, &format!("{data}, kept between runs; remove it to begin anew"));
    format!(
        r#"The demo is running: the application `{APP}`, with tasks and comments of two users.

{lines}

See a change arrive. In a second terminal, as ben:

  {program} tail task --data {data} --token @{ben}

and in a third one, as anna:

  curl -X POST {api}/model/task \
    -H 'nxx-app-id: {APP}' -H "Authorization: Bearer $(cat {anna})" \
    -H 'Content-Type: application/json' -d '{{"title":"Water the plants","priority":4}}'

Ctrl-C stops it."#
    )
}

fn token_file(place: &Place, person: &Person) -> PathBuf {
    place.data.join(format!("{}.token", person.name))
}

fn read(file: &Path) -> Result<String, Exit> {
    fs::read_to_string(file).map_err(|error| Exit::Failed(format!("cannot read {}: {error}", file.display())))
}

/// For the owner's eyes only.
fn write_secret(file: &Path, text: &str) -> Result<(), Exit> {
    let write = || {
        let mut open = fs::File::options();
        let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(file)?;
        writeln!(file, "{text}")
    };
    write().map_err(|error| Exit::Failed(format!("cannot write {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use nexxus_storage::model::{Rules, Schema};

    use super::*;

    #[test]
    fn the_application_is_valid() {
        let definition = json_of("the demo's application", DEFINITION).expect("JSON");
        assert_eq!(definition["id"], APP);
        let schema = Schema::parse(&definition["schema"]).expect("a schema");
        Rules::parse(&definition["rules"], &schema).expect("rules");
    }

    #[test]
    fn what_comes_next_is_said() {
        let place = Place {
            api: "http://127.0.0.1:3000".to_owned(),
            websocket: "ws://127.0.0.1:8080/".to_owned(),
            data: DIRECTORY.into(),
            configured_token: None,
            program: "target/release/nexxus".to_owned(),
        };
        let said = said(&place);
        for part in [
            "  Two tabs   http://127.0.0.1:3000/#app=tasks&model=task&user=anna&password=anna-demo\n             http",
            "  Users      anna  password anna-demo  device anna-phone  token in nexxus-demo/anna.token\n             ben   pass",
            "  target/release/nexxus tail task --data nexxus-demo --token @nexxus-demo/ben.token\n",
            "$(cat nexxus-demo/anna.token)",
            r#"-d '{"title":"Water the plants","priority":4}'"#,
        ] {
            assert!(said.contains(part), "{said}\ndoes not say\n{part}");
        }
    }
}
