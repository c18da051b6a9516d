//! What a layer's whiteouts and opaque markers hide (OCI image specification, layer.md, "Whiteouts").
//!
//! A marker speaks of the tree that the lower layers make, wherever in its layer it stands. Its directory is looked for there
//! through symbolic links, but not through one that the same layer replaces or hides: what was a link is a directory of the
//! layer's own then, and nothing of the lower layers is in it. This is how builders write a directory that takes the place of
//! a link: its entry, an opaque marker in it, its content.

use std::collections::{HashMap, HashSet};

use super::LayerError;
use super::merge::{Inode, Layer, MOST_LINKS, Node, NodeId, RecordKind, Tree};
use super::path::split;

/// What a layer takes out of the tree below it.
#[derive(Default)]
pub(super) struct Gone {
    names: HashMap<NodeId, HashSet<Box<[u8]>>>,
    /// Directories of which all names go.
    emptied: HashSet<NodeId>,
}

impl Gone {
    /// Whether this name in this directory goes.
    pub(super) fn has(&self, directory: NodeId, name: &[u8]) -> bool {
        let names = self.names.get(&directory);
        names.is_some_and(|names| names.contains(name)) || self.emptied.contains(&directory)
    }

    fn add(&mut self, place: Place) {
        match place {
            Place::Name(directory, name) => self.names.entry(directory).or_default().insert(name.into()),
            Place::Content(directory) => self.emptied.insert(directory),
        };
    }

    /// Whether it was there.
    fn remove(&mut self, place: Place) -> bool {
        match place {
            Place::Name(directory, name) => self.names.get_mut(&directory).is_some_and(|names| names.remove(name)),
            Place::Content(directory) => self.emptied.remove(&directory),
        }
    }
}

/// What a part of a layer takes away.
#[derive(Clone, Copy)]
enum Place<'a> {
    Name(NodeId, &'a [u8]),
    /// All that is in a directory.
    Content(NodeId),
}

/// A part that stands behind links: their number, and what it takes away if none of them is gone.
type Linked<'a> = (usize, Part<'a>, Option<Place<'a>>);

/// A part of a layer that may take something away.
#[derive(Clone, Copy)]
enum Part<'a> {
    Whiteout(&'a [u8]),
    Opaque(&'a [u8]),
    /// An entry, and whether it is a directory, which leaves a directory in its place.
    Entry(&'a [u8], bool),
}

impl Part<'_> {
    fn of(&self, error: LayerError) -> LayerError {
        let (Part::Whiteout(path) | Part::Opaque(path) | Part::Entry(path, _)) = self;
        error.of(path)
    }
}

impl<D> Tree<D> {
    /// Takes out what the markers of `layer` hide, before its entries are there.
    ///
    /// # Errors
    /// A marker whose directory leads through a loop of links; the budget's.
    pub(super) fn hide(&mut self, layer: &Layer<D>) -> Result<(), LayerError> {
        let opaques = layer.opaques.iter().map(|path| Part::Opaque(path));
        let whiteouts = layer.whiteouts.iter().map(|path| Part::Whiteout(path));
        // All are looked for before the first takes anything away, so that their order says nothing.
        let mut hidden = Vec::new();
        let linked = self.places(opaques.chain(whiteouts), &mut |place| hidden.push(place))?;
        if !linked.is_empty() {
            let mut gone = self.gone(layer, &hidden, &linked)?;
            for (_, part, place) in linked {
                // It may go through what it hides itself. If that is gone by another part, too, it is none the worse for it.
                let own = place.is_some_and(|place| gone.remove(place));
                let found = self.place(part, &gone).map_err(|error| part.of(error))?.1;
                hidden.extend(found);
                if let Some(place) = place.filter(|_| own) {
                    gone.add(place);
                }
            }
        }
        for place in hidden {
            // Its directory may have gone before.
            let lost: Vec<NodeId> = match place {
                Place::Name(directory, name) => self
                    .names(directory)
                    .and_then(|names| names.remove(name))
                    .into_iter()
                    .collect(),
                Place::Content(directory) => match self.names(directory) {
                    Some(names) => std::mem::take(names).into_values().collect(),
                    None => Vec::new(),
                },
            };
            lost.into_iter().for_each(|id| self.unlink(id));
        }
        Ok(())
    }

    /// All that goes by markers behind no links (`hidden`), by those that are `linked`, and by the entries.
    fn gone<'a>(
        &mut self,
        layer: &'a Layer<D>,
        hidden: &[Place<'a>],
        linked: &[Linked<'a>],
    ) -> Result<Gone, LayerError> {
        let mut gone = Gone::default();
        hidden.iter().for_each(|place| gone.add(*place));
        let entries = layer.records.iter().map(|record| {
            let is_directory = matches!(record.kind, RecordKind::Directory);
            Part::Entry(&record.path, is_directory)
        });
        let mut linked = [linked, &self.places(entries, &mut |place| gone.add(place))?].concat();
        // What a link leads to is judged after the link.
        linked.sort_by_key(|(links, ..)| *links);
        for alike in linked.chunk_by(|(a, ..), (b, ..)| a == b) {
            let mut places = Vec::new();
            for (_, part, _) in alike {
                match self.place(*part, &gone) {
                    Ok((_, place)) => places.extend(place),
                    // Nothing is behind a loop.
                    Err(LayerError::Malformed(_)) => {}
                    Err(error) => return Err(part.of(error)),
                }
            }
            places.into_iter().for_each(|place| gone.add(place));
        }
        Ok(gone)
    }

    /// Tells the places of those parts that stand behind no link, and returns the others.
    fn places<'a>(
        &mut self,
        parts: impl Iterator<Item = Part<'a>>,
        tell: &mut dyn FnMut(Place<'a>),
    ) -> Result<Vec<Linked<'a>>, LayerError> {
        let mut linked = Vec::new();
        for part in parts {
            match self.place(part, &Gone::default()) {
                Ok((0, place)) => place.into_iter().for_each(&mut *tell),
                Ok((_, None)) => {}
                Ok((links, place)) => linked.push((links, part, place)),
                // A loop, of which a link may be gone.
                Err(LayerError::Malformed(_)) => linked.push((MOST_LINKS + 1, part, None)),
                Err(error) => return Err(part.of(error)),
            }
        }
        Ok(linked)
    }

    /// What a part takes away, if it is there and no link that is `gone` leads to it; behind how many links that is.
    fn place<'a>(&mut self, part: Part<'a>, gone: &Gone) -> Result<(usize, Option<Place<'a>>), LayerError> {
        let (path, name) = match part {
            Part::Opaque(path) => (path, None),
            Part::Whiteout(path) | Part::Entry(path, _) => match split(path) {
                Some((parent, name)) => (parent, Some(name)),
                None => return Ok((0, None)),
            },
        };
        let walked = self.follow(path, gone)?;
        let (links, found) = (walked.links, walked.found());
        let Some((directory, names)) = found.and_then(|id| Some((id, self.names(id)?))) else {
            return Ok((links, None));
        };
        let Some(name) = name else {
            return Ok((links, Some(Place::Content(directory))));
        };
        let Some(child) = names.get(name).copied() else {
            return Ok((links, None));
        };
        let taken = match (part, self.get(child)) {
            (Part::Entry(_, is_directory), Some((node, ..))) => match node {
                Node::Directory(_) => !is_directory,
                Node::Inode(inode) => matches!(inode, Inode::Symlink(_)),
            },
            _ => true,
        };
        Ok((links, taken.then_some(Place::Name(directory, name))))
    }
}
