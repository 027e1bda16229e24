//! Where a fault stands in an input: JSON Pointers (RFC 6901), put together only when there is a fault.

use super::FieldError;

/// Faults told of one input at most; more help nobody.
pub(crate) const MAX_FAULTS: usize = 50;

/// A place in an input, linked to the place around it.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    around: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Name(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    pub(crate) const ROOT: At<'static> = At { around: None, step: Step::Root };

    pub(crate) fn name(&'a self, name: &'a str) -> At<'a> {
        At { around: Some(self), step: Step::Name(name) }
    }

    pub(crate) fn index(&'a self, index: usize) -> At<'a> {
        At { around: Some(self), step: Step::Index(index) }
    }

    pub(crate) fn fault(&self, message: impl Into<String>) -> FieldError {
        FieldError::new(self.pointer(), message)
    }

    pub(crate) fn pointer(&self) -> String {
        let mut pointer = self.around.map(At::pointer).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Name(name) => {
                pointer.push('/');
                pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
            }
            Step::Index(index) => pointer.push_str(&format!("/{index}")),
        }
        pointer
    }
}

/// The faults found so far.
#[derive(Default)]
pub(crate) struct Faults(Vec<FieldError>);

impl Faults {
    pub(crate) fn add(&mut self, at: &At<'_>, message: impl Into<String>) {
        if !self.is_full() {
            self.0.push(at.fault(message));
        }
    }

    /// Adds a fault that has its place already.
    pub(crate) fn push(&mut self, fault: FieldError) {
        if !self.is_full() {
            self.0.push(fault);
        }
    }

    /// Whether looking for more is useless.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_FAULTS
    }

    /// How many were found.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn result<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_escaped() {
        let outer = At::ROOT.name("a/b");
        let inner = outer.index(3);
        assert_eq!(inner.name("~x").fault("bad"), FieldError::new("/a~1b/3/~0x", "bad"));
        assert_eq!(At::ROOT.fault("bad").path, "");
    }

    #[test]
    fn faults_are_bounded() {
        let mut faults = Faults::default();
        (0..1000).for_each(|index| faults.add(&At::ROOT.index(index), "bad"));
        assert_eq!(faults.len(), MAX_FAULTS);
    }
}
