//! Which fields of which model are filterable, kept beside the index: what documents are indexed by, and how far the indexing of a
//! new field has come.
//!
//! One file for each application, replaced as a whole, named by a hash of its id (file systems that take `A` for `a` would mix up
//! ids). Each change of a model's fields is a *revision*, a number that only rises within an application; a document in the index
//! carries the revision that it was indexed by, and a field the one that it came with. So a field is ready when no document of an
//! older revision is left, which a restart cannot make wrong.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::schema::{Scope, own_key};
use crate::{
    Error, ErrorKind, Result,
    model::{
        AppId, ModelName, Offset,
        filter::{Field, Kind},
    },
};

const FORMAT: u32 = 1;

/// What documents of one model are indexed by.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Definition {
    pub(super) revision: u64,
    pub(super) fields: Vec<Indexed>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Indexed {
    pub(super) field: Field,
    /// Its name in the index.
    pub(super) key: Arc<str>,
    /// The revision that it came with: documents of older ones lack it.
    pub(super) since: u64,
    /// No document lacks it.
    pub(super) ready: bool,
}

impl Definition {
    pub(super) fn indexed(&self, field: &Field) -> Option<&Indexed> {
        self.fields.iter().find(|indexed| indexed.field == *field)
    }

    /// Documents of older revisions lack a field that is not ready.
    pub(super) fn wanted_revision(&self) -> Option<u64> {
        self.fields.iter().filter(|indexed| !indexed.ready).map(|indexed| indexed.since).max()
    }
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Application {
    format: u32,
    app: Option<AppId>,
    /// The last revision given.
    revision: u64,
    /// What the log said up to here was dropped.
    dropped: Option<Dropped>,
    models: BTreeMap<ModelName, Model>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Model {
    revision: u64,
    fields: Vec<StoredField>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredField {
    path: Arc<str>,
    kind: StoredKind,
    array: bool,
    since: u64,
    ready: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredKind {
    String,
    Number,
    Boolean,
    Date,
}

/// That an application was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Dropped {
    /// Its entries up to here are void.
    pub(super) upto: Offset,
    /// Once the index is committed at or above this journal sequence, its documents are gone from it.
    pub(super) sequence: u64,
}

/// The definitions of all applications.
pub(super) struct Definitions {
    dir: PathBuf,
    /// What is in the files; changed only together with them.
    applications: Mutex<HashMap<AppId, Application>>,
    /// The same, ready for use.
    compiled: RwLock<HashMap<Scope, Arc<Definition>>>,
}

impl Definitions {
    /// Reads the files of a directory, or makes it.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|error| unreadable(dir, error))?;
        let mut applications = HashMap::new();
        for file in fs::read_dir(dir).map_err(|error| unreadable(dir, error))? {
            let path = file.map_err(|error| unreadable(dir, error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue; // Left over from a write that did not come to its end.
            }
            let application = read(&path)?;
            if let Some(app) = application.app.clone() {
                applications.insert(app, application);
            }
        }
        let compiled = applications.iter().flat_map(|(app, application)| application.compile(app)).collect();
        Ok(Self { dir: dir.to_owned(), applications: Mutex::new(applications), compiled: RwLock::new(compiled) })
    }

    /// The files of a directory that cannot be read; `Unsupported` for those of a newer version. Changes nothing.
    pub(super) fn unreadable(dir: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let files = match fs::read_dir(dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            Err(error) => return Err(unreadable(dir, error)),
        };
        for file in files {
            let path = file.map_err(|error| unreadable(dir, error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Err(error) if error.kind == ErrorKind::Unsupported => return Err(error),
                Err(_) => names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned())),
                Ok(_) => {}
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn get(&self, scope: &Scope) -> Arc<Definition> {
        self.compiled.read().get(scope).cloned().unwrap_or_default()
    }

    /// The models of which some field is not ready.
    pub(super) fn unready(&self) -> Vec<(Scope, Arc<Definition>)> {
        let compiled = self.compiled.read();
        let mut unready: Vec<_> = compiled
            .iter()
            .filter(|(_, definition)| definition.wanted_revision().is_some())
            .map(|(scope, definition)| (scope.clone(), definition.clone()))
            .collect();
        unready.sort_by(|(left, _), (right, _)| left.cmp(right));
        unready
    }

    /// Every application that was dropped.
    pub(super) fn dropped(&self) -> HashMap<AppId, Dropped> {
        let applications = self.applications.lock();
        applications.iter().filter_map(|(app, application)| Some((app.clone(), application.dropped?))).collect()
    }

    /// Sets the fields of a model; those that it did not have are not ready. Says whether anything changed. Blocking.
    pub(super) fn define(&self, scope: &Scope, fields: &[Field]) -> Result<bool> {
        let mut applications = self.applications.lock();
        let mut application = applications.get(&scope.app).cloned().unwrap_or_default();
        let old = application.models.remove(&scope.model).unwrap_or_default();
        let revision = application.revision + 1;
        let wanted = fields.iter().filter(|field| !field.is_universal);
        let mut fields: Vec<_> = wanted
            .map(|field| {
                let known = old.fields.iter().find(|stored| stored.field() == *field);
                known.cloned().unwrap_or_else(|| StoredField::new(field, revision))
            })
            .collect();
        fields.sort_by(|left, right| left.path.cmp(&right.path));
        fields.dedup_by(|left, right| left.field() == right.field());
        let is_new = fields.iter().any(|field| field.since == revision);
        if !is_new && fields.len() == old.fields.len() {
            return Ok(false);
        }
        application.revision = revision;
        application.models.insert(scope.model.clone(), Model { revision, fields });
        self.replace(&mut applications, &scope.app, application)?;
        Ok(true)
    }

    /// Marks the fields of a model that came with a revision, or before it, as ready. Blocking.
    pub(super) fn set_ready(&self, scope: &Scope, revision: u64) -> Result<()> {
        let mut applications = self.applications.lock();
        let Some(mut application) = applications.get(&scope.app).cloned() else { return Ok(()) };
        let Some(model) = application.models.get_mut(&scope.model) else { return Ok(()) };
        model.fields.iter_mut().filter(|field| field.since <= revision).for_each(|field| field.ready = true);
        self.replace(&mut applications, &scope.app, application)
    }

    /// Forgets the models of an application and remembers that it was dropped. Blocking.
    pub(super) fn drop_application(&self, app: &AppId, dropped: Dropped) -> Result<()> {
        let mut applications = self.applications.lock();
        let mut application = applications.get(app).cloned().unwrap_or_default();
        application.models.clear();
        application.dropped = Some(dropped);
        self.replace(&mut applications, app, application)
    }

    /// Does something while no definition changes.
    pub(super) fn while_unchanged<T>(&self, work: impl FnOnce(&Unchanged<'_>) -> T) -> T {
        let applications = self.applications.lock();
        work(&Unchanged(&applications))
    }

    fn replace(
        &self,
        applications: &mut HashMap<AppId, Application>,
        app: &AppId,
        mut application: Application,
    ) -> Result<()> {
        application.format = FORMAT;
        application.app = Some(app.clone());
        let path = self.dir.join(file_name(app));
        write(&self.dir, &path, &application)
            .map_err(|error| Error::io("define fields", format!("file {}", path.display()), error))?;
        let mut compiled = self.compiled.write();
        compiled.retain(|scope, _| scope.app != *app);
        compiled.extend(application.compile(app));
        applications.insert(app.clone(), application);
        Ok(())
    }
}

/// The definitions, which do not change while it is held.
pub(super) struct Unchanged<'a>(&'a HashMap<AppId, Application>);

impl Unchanged<'_> {
    /// The files by their names: what they hold.
    pub(super) fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let file = |(app, application): (&AppId, &Application)| {
            let bytes = serde_json::to_vec(application).map_err(|error| {
                Error::new(ErrorKind::Internal, "copy definitions", format!("application {app}")).with_source(error)
            })?;
            Ok((file_name(app), bytes))
        };
        self.0.iter().map(file).collect()
    }
}

impl Application {
    fn compile(&self, app: &AppId) -> Vec<(Scope, Arc<Definition>)> {
        let compile = |model: &Model| Definition {
            revision: model.revision,
            fields: model.fields.iter().map(StoredField::compile).collect(),
        };
        self.models.iter().map(|(name, model)| (Scope::new(app, name), Arc::new(compile(model)))).collect()
    }
}

impl StoredField {
    fn new(field: &Field, since: u64) -> Self {
        let kind = match field.kind {
            Kind::String => StoredKind::String,
            Kind::Number => StoredKind::Number,
            Kind::Boolean => StoredKind::Boolean,
            Kind::Date => StoredKind::Date,
        };
        Self { path: field.path.clone(), kind, array: field.is_array, since, ready: false }
    }

    fn field(&self) -> Field {
        let kind = match self.kind {
            StoredKind::String => Kind::String,
            StoredKind::Number => Kind::Number,
            StoredKind::Boolean => Kind::Boolean,
            StoredKind::Date => Kind::Date,
        };
        Field { path: self.path.clone(), kind, is_array: self.array, is_universal: false }
    }

    fn compile(&self) -> Indexed {
        let field = self.field();
        Indexed { key: own_key(&field).into(), field, since: self.since, ready: self.ready }
    }
}

fn file_name(app: &AppId) -> String {
    let digest = Sha256::digest(app.as_str());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.json")
}

fn read(path: &Path) -> Result<Application> {
    let bytes = fs::read(path).map_err(|error| unreadable(path, error))?;
    let corrupt =
        |error| Error::new(ErrorKind::Corrupt, "open documents", format!("file {}", path.display())).with_source(error);
    // The format first: the rest of a newer one may not be readable.
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let Versioned { format } = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if format > FORMAT {
        let message = format!("file {} has format {format}, written by a newer version of Nexxus", path.display());
        return Err(Error::new(ErrorKind::Unsupported, "open documents", message));
    }
    serde_json::from_slice(&bytes).map_err(corrupt)
}

/// Replaces a file so that a crash leaves the old or the new one.
fn write(dir: &Path, path: &Path, application: &Application) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(application)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::io("open documents", path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(path: &str, kind: Kind) -> Field {
        Field { path: path.into(), kind, is_array: false, is_universal: false }
    }

    fn scope() -> Scope {
        Scope::new(&AppId::parse("a").expect("an id"), &ModelName::parse("task").expect("a name"))
    }

    fn states(definitions: &Definitions) -> Vec<(String, u64, bool)> {
        let definition = definitions.get(&scope());
        definition.fields.iter().map(|indexed| (indexed.key.to_string(), indexed.since, indexed.ready)).collect()
    }

    #[test]
    fn a_changed_field_is_a_new_one_and_everything_survives_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Definitions::open(dir.path()).expect("definitions");
        let definitions = open();
        assert!(
            definitions.define(&scope(), &[field("a", Kind::Number), field("b.c", Kind::String)]).expect("defined")
        );
        assert_eq!(states(&definitions), [("n:a".into(), 1, false), ("s:b:c".into(), 1, false)]);
        definitions.set_ready(&scope(), 1).expect("stored");
        let same = [field("b.c", Kind::String), field("a", Kind::Number), field("a", Kind::Number)];
        assert!(!definitions.define(&scope(), &same).expect("defined"));

        let definitions = open();
        assert!(
            definitions.define(&scope(), &[field("a", Kind::String), field("b.c", Kind::String)]).expect("defined")
        );
        let expected = [("s:a".into(), 2, false), ("s:b:c".into(), 1, true)];
        assert_eq!(states(&definitions), expected);
        assert_eq!(definitions.get(&scope()).wanted_revision(), Some(2));
        assert_eq!(states(&open()), expected);
        assert_eq!(open().unready().len(), 1);

        assert!(definitions.define(&scope(), &[]).expect("defined"));
        assert_eq!(definitions.get(&scope()).revision, 3);
        assert!(open().unready().is_empty());
    }

    #[test]
    fn a_dropped_application_is_remembered_and_its_revisions_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let definitions = Definitions::open(dir.path()).expect("definitions");
        definitions.define(&scope(), &[field("a", Kind::Number)]).expect("defined");
        let dropped = Dropped { upto: Offset::new(1, 7), sequence: 30 };
        definitions.drop_application(&scope().app, dropped).expect("dropped");
        assert_eq!(states(&definitions), []);

        let definitions = Definitions::open(dir.path()).expect("definitions");
        assert_eq!(definitions.dropped()[&scope().app], dropped);
        definitions.define(&scope(), &[field("a", Kind::Number)]).expect("defined");
        assert_eq!(states(&definitions), [("n:a".into(), 2, false)]);
    }

    #[test]
    fn a_newer_format_and_a_damaged_file_are_refused_by_name() {
        let newer = (&br#"{"format":2}"#[..], ErrorKind::Unsupported, "newer version");
        for (bytes, kind, says) in [newer, (b"{", ErrorKind::Corrupt, "x.json")] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join("x.json"), bytes).expect("written");
            let error = Definitions::open(dir.path()).err().expect("an error");
            assert_eq!(error.kind, kind);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
