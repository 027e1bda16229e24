//! Filters as queries of the index: exactly the documents that `Condition::matches` finds, among those with search fields.

use std::ops::Bound;

use tantivy::{
    Term,
    query::{BooleanQuery, EmptyQuery, ExistsQuery, Occur, Query, RangeQuery, TermQuery, TermSetQuery},
    schema::IndexRecordOption,
};

use super::{
    schema::{Fields, OWN, Scope, own_key},
    value::{IndexValue, is_of_kind},
};
use crate::model::filter::{Condition, Field, Scalar, Test};

/// Writes queries for one scope.
pub(super) struct Translator<'a> {
    pub(super) fields: &'a Fields,
    pub(super) scope: &'a Scope,
}

/// Where the values of a field stand in the index.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Column {
    /// All documents of a scope have this value.
    Constant(Box<str>),
    /// A column of the schema, or a path below its JSON field.
    Named(String),
}

/// The column that a field is sorted by.
pub(super) fn column(scope: &Scope, field: &Field) -> Column {
    if !field.is_universal {
        return Column::Named(format!("{OWN}.{}", own_key(field)));
    }
    match &*field.path {
        "type" => Column::Constant(scope.model.as_str().into()),
        "appId" => Column::Constant(scope.app.as_str().into()),
        "userId" => Column::Named("user".to_owned()),
        "createdAt" => Column::Named("created".to_owned()),
        "updatedAt" => Column::Named("updated".to_owned()),
        other => Column::Named(other.to_owned()), // id, version
    }
}

impl Translator<'_> {
    /// The documents of the scope that match.
    pub(super) fn query(&self, condition: &Condition) -> Box<dyn Query> {
        match condition {
            Condition::All => self.everything(),
            Condition::None => Box::new(EmptyQuery),
            condition => all([self.everything(), self.translate(condition)]),
        }
    }

    fn everything(&self) -> Box<dyn Query> {
        term(self.fields.scope_term(self.scope))
    }

    /// May find documents of other scopes.
    fn translate(&self, condition: &Condition) -> Box<dyn Query> {
        match condition {
            Condition::All => self.everything(),
            Condition::None => Box::new(EmptyQuery),
            Condition::And(parts) if parts.is_empty() => self.everything(),
            Condition::And(parts) => self.conjunction(parts),
            Condition::Or(parts) => any(parts.iter().map(|part| self.translate(part))),
            Condition::Not(part) => self.conjunction(&[Condition::Not(part.clone())]),
            Condition::Test(field, test) => self.test(field, test),
        }
    }

    /// Negations join the conjunction that they stand in; one of negations alone needs something to take away from.
    fn conjunction(&self, parts: &[Condition]) -> Box<dyn Query> {
        let clause = |part: &Condition| match part {
            Condition::Not(part) => (Occur::MustNot, self.translate(part)),
            part => (Occur::Must, self.translate(part)),
        };
        let mut clauses: Vec<_> = parts.iter().map(clause).collect();
        if clauses.iter().all(|(occur, _)| *occur == Occur::MustNot) {
            clauses.push((Occur::Must, self.everything()));
        }
        Box::new(BooleanQuery::new(clauses))
    }

    fn test(&self, field: &Field, test: &Test) -> Box<dyn Query> {
        match column(self.scope, field) {
            Column::Constant(text) if holds(test, field, &text) => self.everything(),
            Column::Constant(_) => Box::new(EmptyQuery),
            Column::Named(name) => self.test_column(field, &name, test),
        }
    }

    fn test_column(&self, field: &Field, name: &str, test: &Test) -> Box<dyn Query> {
        let values = |scalars: &[Scalar]| -> Vec<IndexValue> {
            let fitting = scalars.iter().filter(|scalar| is_of_kind(scalar, field.kind));
            fitting.map(IndexValue::from_scalar).collect()
        };
        match test {
            Test::Exists if field.is_universal && &*field.path != "userId" => self.everything(),
            Test::Exists => Box::new(ExistsQuery::new(name.to_owned(), false)),
            Test::Eq(scalar) => self.one_of(field, &values(std::slice::from_ref(scalar))),
            Test::In(scalars) => self.one_of(field, &values(scalars)),
            Test::Range(low, high) => self.range(field, low, high),
            Test::Prefix(prefix) => self.prefix(field, prefix),
        }
    }

    fn one_of(&self, field: &Field, values: &[IndexValue]) -> Box<dyn Query> {
        let is_ranged = field.is_universal && matches!(&*field.path, "createdAt" | "updatedAt" | "version");
        if is_ranged {
            // These have columns and no terms.
            return any(values
                .iter()
                .map(|value| self.bounded(field, Bound::Included(value.clone()), Bound::Included(value.clone()))));
        }
        match values {
            [] => Box::new(EmptyQuery),
            [value] => term(self.exact_term(field, value)),
            values => Box::new(TermSetQuery::new(values.iter().map(|value| self.exact_term(field, value)))),
        }
    }

    fn range(&self, field: &Field, low: &Bound<Scalar>, high: &Bound<Scalar>) -> Box<dyn Query> {
        let fits = |bound: &Bound<Scalar>| match bound {
            Bound::Included(scalar) | Bound::Excluded(scalar) => is_of_kind(scalar, field.kind),
            Bound::Unbounded => true,
        };
        if !fits(low) || !fits(high) {
            return Box::new(EmptyQuery);
        }
        self.bounded(field, low.as_ref().map(IndexValue::from_scalar), high.as_ref().map(IndexValue::from_scalar))
    }

    fn prefix(&self, field: &Field, prefix: &str) -> Box<dyn Query> {
        let low = Bound::Included(IndexValue::Text(prefix.into()));
        let high = after_prefix(prefix).map_or(Bound::Unbounded, |end| Bound::Excluded(IndexValue::Text(end.into())));
        self.bounded(field, low, high)
    }

    fn bounded(&self, field: &Field, low: Bound<IndexValue>, high: Bound<IndexValue>) -> Box<dyn Query> {
        if is_empty(&low, &high) {
            return Box::new(EmptyQuery);
        }
        let term = |value: IndexValue| self.column_term(field, &value);
        Box::new(RangeQuery::new(low.map(term), high.map(term)))
    }

    /// The term that documents with this value have.
    fn exact_term(&self, field: &Field, value: &IndexValue) -> Term {
        match (field.is_universal, &*field.path, value) {
            (true, "id", IndexValue::Text(id)) => self.fields.key_term(self.scope, id),
            _ => self.column_term(field, value),
        }
    }

    /// The value as the field's column compares it.
    fn column_term(&self, field: &Field, value: &IndexValue) -> Term {
        let fields = self.fields;
        if !field.is_universal {
            let mut term = Term::from_field_json_path(fields.own, &own_key(field), false);
            match value {
                IndexValue::Integer(number) => term.append_type_and_fast_value(*number),
                IndexValue::Text(text) => term.append_type_and_str(text),
            }
            return term;
        }
        let column = match &*field.path {
            "userId" => fields.user,
            "createdAt" => fields.created,
            "updatedAt" => fields.updated,
            "version" => fields.version,
            _ => fields.id,
        };
        match value {
            IndexValue::Integer(number) => Term::from_field_i64(column, *number),
            IndexValue::Text(text) => Term::from_field_text(column, text),
        }
    }
}

fn term(term: Term) -> Box<dyn Query> {
    Box::new(TermQuery::new(term, IndexRecordOption::Basic))
}

fn all(parts: impl IntoIterator<Item = Box<dyn Query>>) -> Box<dyn Query> {
    Box::new(BooleanQuery::new(parts.into_iter().map(|part| (Occur::Must, part)).collect()))
}

fn any(parts: impl IntoIterator<Item = Box<dyn Query>>) -> Box<dyn Query> {
    Box::new(BooleanQuery::new(parts.into_iter().map(|part| (Occur::Should, part)).collect()))
}

/// Whether nothing can lie between the bounds.
fn is_empty(low: &Bound<IndexValue>, high: &Bound<IndexValue>) -> bool {
    match (low, high) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low >= high,
    }
}

/// A test on a field that has the same text in every document.
fn holds(test: &Test, field: &Field, text: &str) -> bool {
    let is =
        |scalar: &Scalar| is_of_kind(scalar, field.kind) && matches!(scalar, Scalar::String(other) if **other == *text);
    match test {
        Test::Exists => true,
        Test::Eq(scalar) => is(scalar),
        Test::In(scalars) => scalars.iter().any(is),
        Test::Range(low, high) => {
            let above = match low {
                Bound::Included(Scalar::String(low)) => **low <= *text,
                Bound::Excluded(Scalar::String(low)) => **low < *text,
                Bound::Unbounded => true,
                _ => false,
            };
            let below = match high {
                Bound::Included(Scalar::String(high)) => *text <= **high,
                Bound::Excluded(Scalar::String(high)) => *text < **high,
                Bound::Unbounded => true,
                _ => false,
            };
            above && below
        }
        Test::Prefix(prefix) => text.starts_with(&**prefix),
    }
}

/// The first text after all that begin with the prefix; none when there is no such text.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        // The code points of surrogates are no characters.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_text_by_code_point() {
        for (prefix, end) in [
            ("a", Some("b")),
            ("ab\u{7f}", Some("ab\u{80}")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}\u{10ffff}", None),
            ("", None),
        ] {
            assert_eq!(after_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
