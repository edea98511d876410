//! The files that make up an image: itself, its data file, and what shows through from beneath.
//! They are opened and locked here, with what their headers say checked, before the format driver
//! sees any.

use crate::header::{Backing, Header, LOOKED_AT, Tables};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vduse_device::backend::{Backend, EngineChoice, Error, File, Locking, OpenOptions};

/// Images on each other, at most: one that names itself is found, too.
const DEEPEST: usize = 32;

/// How an image is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Writes are refused; other readers are welcome.
    pub read_only: bool,
    /// O_DIRECT, for all files.
    pub direct: bool,
    /// Which engine its files are read and written by.
    pub engine: EngineChoice,
    /// When QEMU's image locks are held.
    pub locking: Locking,
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Opened here, and closed with the image.
    Image,
    /// The image lies on it and has it for itself: closed with it, but not where the image is
    /// only released.
    Layer,
    /// Somebody else's, who closes it.
    Others,
}

/// An open file.
pub(crate) struct Opened {
    pub(crate) file: Arc<dyn Backend>,
    pub(crate) path: PathBuf,
    pub(crate) owner: Owner,
}

/// What lies beneath an image.
#[derive(Clone)]
pub enum Beneath {
    /// What the image names.
    AsNamed,
    /// Nothing, whatever it names: what is not in it reads as zeroes.
    Nothing,
    /// This disk; who has it closes it, after the image.
    Disk(Arc<dyn Backend>),
}

/// One image of a chain.
pub(crate) struct Link {
    pub(crate) image: Opened,
    /// `None`: its bytes are the disk's.
    pub(crate) format: Option<Format>,
}

/// All files of a chain, in the order of their ids.
pub(crate) fn files(links: &[Link]) -> impl Iterator<Item = &Opened> {
    links.iter().flat_map(|link| {
        let data = link.format.as_ref().and_then(|format| format.data.as_ref());
        std::iter::once(&link.image).chain(data)
    })
}

/// What a qcow2 image consists of.
pub(crate) struct Format {
    pub(crate) header: Header,
    /// `None`: in blocks of the file that hold other clusters, too.
    pub(crate) tables: Option<Tables>,
    pub(crate) data: Option<Opened>,
}

/// Opens an image in a file and what lies beneath, the uppermost first. Every error names the file.
pub(crate) fn open(path: &Path, options: Options, beneath: Beneath) -> Result<Vec<Link>, Error> {
    let (image, start) = open_start(path, options)?;
    let format = read_format(&image, &start, Some(options))?;
    follow(image, format, options, beneath)
}

/// The same of an image that another backend holds, whose first bytes are `start`. What it names is
/// not followed: paths in it are nobody's.
pub(crate) fn on(image: Opened, start: &[u8], beneath: Beneath) -> Result<Vec<Link>, Error> {
    let format = read_format(&image, start, None)?;
    let beneath = match (&format.header.backing, beneath) {
        (Some(backing), Beneath::AsNamed) => {
            let why = format!(
                "names {:?} as its backing file: give a node, or null, as backing",
                backing.name
            );
            return Err(refuse(&image.path, why));
        }
        (None, Beneath::AsNamed) => Beneath::Nothing,
        (_, given) => given,
    };
    Ok(end(image, format, beneath))
}

/// A chain that ends with this image and what is given beneath.
fn end(image: Opened, format: Format, beneath: Beneath) -> Vec<Link> {
    let format = Some(format);
    let below = match beneath {
        Beneath::Disk(file) => Some(Link {
            image: Opened {
                file,
                path: PathBuf::from("backing"),
                owner: Owner::Others,
            },
            format: None,
        }),
        Beneath::Nothing | Beneath::AsNamed => None,
    };
    std::iter::once(Link { image, format })
        .chain(below)
        .collect()
}

fn follow(
    mut image: Opened,
    mut format: Format,
    mut options: Options,
    beneath: Beneath,
) -> Result<Vec<Link>, Error> {
    let mut links: Vec<Link> = Vec::new();
    if !matches!(beneath, Beneath::AsNamed) {
        return Ok(end(image, format, beneath));
    }
    options.read_only = true;
    loop {
        if links.len() == DEEPEST {
            let why = format!("more than {DEEPEST} images on each other");
            return Err(refuse(&links[0].image.path, why));
        }
        let Some(backing) = format.header.backing.clone() else {
            links.extend(end(image, format, Beneath::Nothing));
            return Ok(links);
        };
        let is_raw = is_raw(&image.path, &backing)?;
        let path = beside(&image.path, &backing.name)?;
        let format_above = Some(format);
        links.push(Link {
            image,
            format: format_above,
        });
        if is_raw {
            let image = open_file(&path, options)?.0;
            links.push(Link {
                image,
                format: None,
            });
            return Ok(links);
        }
        let (next, start) = open_start(&path, options)?;
        format = read_format(&next, &start, Some(options))?;
        image = next;
    }
}

/// Whether a backing file is a raw one. EINVAL: of no format that is known.
fn is_raw(path: &Path, backing: &Backing) -> Result<bool, Error> {
    match backing.format.as_deref() {
        Some("raw") => Ok(true),
        Some("qcow2") => Ok(false),
        Some(other) => {
            let why = format!("its backing file is of format {other:?}: raw and qcow2 are known");
            Err(refuse(path, why))
        }
        None => {
            let why = format!(
                "does not say of which format its backing file is; say so: qemu-img rebase -u -b {} -F FORMAT",
                backing.name
            );
            Err(refuse(path, why))
        }
    }
}

fn open_file(path: &Path, options: Options) -> Result<(Opened, Arc<File>), Error> {
    let options = OpenOptions {
        read_only: options.read_only,
        direct: options.direct,
        engine: options.engine,
        locking: options.locking,
    };
    let file = Arc::new(File::open_container(path, options)?);
    let opened = Opened {
        file: file.clone(),
        path: path.to_owned(),
        owner: Owner::Image,
    };
    Ok((opened, file))
}

/// An open file, and its first bytes.
fn open_start(path: &Path, options: Options) -> Result<(Opened, Vec<u8>), Error> {
    let (opened, file) = open_file(path, options)?;
    let start = file.start(LOOKED_AT as u64)?;
    Ok((opened, start))
}

/// What the image's header says. `options`: how to open its data file; `None`: it is not opened.
fn read_format(image: &Opened, start: &[u8], options: Option<Options>) -> Result<Format, Error> {
    let path = &image.path;
    let header = Header::parse(start, image.file.length().0).map_err(|why| refuse(path, why))?;
    let is_apart = u64::from(image.file.info().block_size) <= header.cluster_size;
    let mut format = Format {
        tables: Tables::read(start).filter(|_| is_apart),
        header,
        data: None,
    };
    let Some(data) = &format.header.data_file else {
        return Ok(format);
    };
    let Some(options) = options else {
        let why = "has a data file, which is followed only from images in files";
        return Err(refuse(path, why));
    };
    let Some(name) = &data.name else {
        return Err(refuse(path, "does not name its data file"));
    };
    let data_path = beside(path, name)?;
    if data.is_raw && !options.read_only {
        let why = format!(
            "its data file is raw by itself (data_file_raw), which writing here would not keep up; open it read-only, or write to {} as file:",
            data_path.display()
        );
        return Err(refuse(path, why));
    }
    format.data = Some(open_file(&data_path, options)?.0);
    Ok(format)
}

/// The path of a file that an image names, relative to its own. EINVAL where it is no path, but
/// one of QEMU's other spellings.
fn beside(image: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = name.strip_prefix("file:").unwrap_or(name);
    let first = path.split('/').next().unwrap_or_default();
    if first.contains(':') {
        let why = format!("names {name:?}: only paths of files are followed");
        return Err(refuse(image, why));
    }
    // Of an absolute path nothing but itself is left.
    Ok(image.parent().unwrap_or(Path::new("")).join(path))
}

fn refuse(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(Errno::INVAL, format!("{}: {why}", path.display()))
}
