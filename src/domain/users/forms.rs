//! The bodies of requests about users.

use nexxus_storage::model::{Problem, problem::ProblemKind};
use serde_json::{Map, Value};

use crate::domain::{form::Form, passwords::PASSWORD_BYTES};

/// Longest username, in bytes.
pub(super) const USERNAME_BYTES: usize = 128;
/// Longest user type, in bytes.
const USER_TYPE_BYTES: usize = 64;

/// The body of `POST /user/register` and `POST /admin/users`.
#[derive(Clone, PartialEq)]
pub struct NewUser {
    /// The name to sign in with; unique in its application.
    pub username: String,
    /// In the clear: it is hashed before it is kept.
    pub password: String,
    /// What kind of user, where the application has kinds.
    pub user_type: Option<String>,
    /// What else is known of the user, for rules and the application.
    pub details: Map<String, Value>,
}

impl NewUser {
    /// 422 with the place of each fault.
    pub fn parse(body: Value) -> Result<Self, Problem> {
        let mut form = Form::of(body)?;
        let new = Self {
            username: form.required_text("username"),
            password: form.required_text("password"),
            user_type: user_type(&mut form),
            details: form.object("details").unwrap_or_default(),
        };
        if !form.has_fault("username")
            && let Some(fault) = fault_of_username(&new.username)
        {
            form.fault::<()>("username", fault);
        }
        check_password(&mut form, "password", &new.password);
        form.finish(ProblemKind::InvalidDocument)?;
        Ok(new)
    }
}

/// The body of `PATCH /user/profile` and `PATCH /admin/users/:id`: what is to be changed.
#[derive(Clone, PartialEq, Default)]
pub struct UserChange {
    /// Users have to say `current_password` too.
    pub password: Option<String>,
    /// The proof that users give who set a new one.
    pub current_password: Option<String>,
    /// A merge patch (RFC 7396) of the details.
    pub details: Option<Map<String, Value>>,
    /// For admins: the inner none takes the type away.
    pub user_type: Option<Option<String>>,
}

impl UserChange {
    /// 422 with the place of each fault, 400 when it is no object.
    pub fn parse(body: Value) -> Result<Self, Problem> {
        let takes_type_away = body.get("userType").is_some_and(Value::is_null);
        let mut form = Form::of(body)?;
        let change = Self {
            password: form.text("password"),
            current_password: form.text("currentPassword"),
            details: form.object("details"),
            user_type: user_type(&mut form).map(Some).or(takes_type_away.then_some(None)),
        };
        if let Some(password) = &change.password {
            check_password(&mut form, "password", password);
        }
        form.finish(ProblemKind::InvalidDocument)?;
        Ok(change)
    }
}

// Without the passwords.
impl std::fmt::Debug for NewUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewUser")
            .field("username", &self.username)
            .field("user_type", &self.user_type)
            .field("details", &self.details)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for UserChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserChange")
            .field("user_type", &self.user_type)
            .field("details", &self.details)
            .finish_non_exhaustive()
    }
}

fn user_type(form: &mut Form) -> Option<String> {
    let user_type = form.text("userType")?;
    if user_type.is_empty() || user_type.len() > USER_TYPE_BYTES || user_type.chars().any(char::is_control) {
        return form.fault("userType", "1 to 64 bytes of printable characters");
    }
    Some(user_type)
}

fn fault_of_username(name: &str) -> Option<&'static str> {
    if !(1..=USERNAME_BYTES).contains(&name.len()) {
        return Some("1 to 128 bytes");
    }
    if name.chars().any(char::is_control) || name.trim() != name {
        return Some("printable characters, with no blanks around them");
    }
    None
}

fn check_password(form: &mut Form, name: &str, password: &str) {
    if !PASSWORD_BYTES.contains(&password.len()) && !form.has_fault(name) {
        form.fault::<()>(name, &format!("{} to {} bytes", PASSWORD_BYTES.start(), PASSWORD_BYTES.end()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(problem: Problem) -> Vec<String> {
        assert_eq!(problem.status, 422);
        problem.errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_new_user_is_read_whole() {
        let body =
            json!({ "username": "anna", "password": "long enough", "userType": "nurse", "details": { "ward": 3 } });
        let new = NewUser::parse(body).expect("a user");
        assert_eq!((new.username.as_str(), new.user_type.as_deref()), ("anna", Some("nurse")));
        assert!(!format!("{new:?}").contains("long enough"), "the password is shown");
        for (body, paths) in [
            (json!({}), vec!["/username", "/password"]),
            (json!({ "username": "", "password": "" }), vec!["/username", "/password"]),
            (json!({ "username": " anna", "password": "short" }), vec!["/username", "/password"]),
            (json!({ "username": "x".repeat(129), "password": "x".repeat(1025) }), vec!["/username", "/password"]),
            (
                json!({ "username": 1, "password": 2, "userType": 3, "details": 4 }),
                vec!["/username", "/password", "/userType", "/details"],
            ),
            (json!({ "username": "a\nb", "password": "long enough", "userType": "" }), vec!["/userType", "/username"]),
            (json!({ "username": "anna", "password": "long enough", "admin": true }), vec!["/admin"]),
        ] {
            assert_eq!(faults(NewUser::parse(body.clone()).expect_err("refused")), paths, "{body}");
        }
        assert_eq!(NewUser::parse(json!("anna")).expect_err("no object").status, 400);
    }

    #[test]
    fn a_change_says_what_is_to_be_changed() {
        let parse = |body: Value| UserChange::parse(body).expect("a change");
        assert_eq!(parse(json!({})), UserChange::default());
        assert_eq!(parse(json!({ "userType": null })).user_type, Some(None));
        assert_eq!(parse(json!({ "userType": "nurse" })).user_type, Some(Some("nurse".into())));
        assert!(parse(json!({ "details": { "ward": null } })).details.is_some());
        let refused = UserChange::parse(json!({ "password": "short", "username": "x" })).expect_err("refused");
        assert_eq!(faults(refused), ["/password", "/username"]);
    }
}
