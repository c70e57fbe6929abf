//! The families of OPA's case folders, in the order of the table.

/// Families that admission policies use: their names and folders.
const USED: &[(&str, &[&str])] = &[
    ("with", &["withkeyword"]),
    (
        "strings",
        &[
            "containskeyword",
            "replacen",
            "strings",
            "trim",
            "trimleft",
            "trimprefix",
            "trimright",
            "trimspace",
            "trimsuffix",
        ],
    ),
    ("sprintf", &["sprintf"]),
    (
        "regular expressions",
        &[
            "regexfind",
            "regexfindallstringsubmatch",
            "regexisvalid",
            "regexmatch",
            "regexmatchtemplate",
            "regexreplace",
            "regexsplit",
        ],
    ),
    ("globs", &["globmatch", "globquotemeta"]),
    (
        "networks",
        &[
            "netcidrcontains",
            "netcidrexpand",
            "netcidrintersects",
            "netcidrisvalid",
            "netcidrmerge",
            "netcidroverlap",
        ],
    ),
    (
        "objects, arrays, sets, casts",
        &[
            "all",
            "any",
            "array",
            "casts",
            "intersection",
            "objectfilter",
            "objectfilteridempotent",
            "objectfilternonstringkey",
            "objectget",
            "objectkeys",
            "objectremove",
            "objectremoveidempotent",
            "objectremovenonstringkey",
            "objectunion",
            "objectunionn",
            "sets",
            "subset",
            "toarray",
            "toset",
            "typebuiltin",
            "typenamebuiltin",
            "union",
        ],
    ),
    (
        "JSON and YAML",
        &[
            "jsonbuiltins",
            "jsonfilter",
            "jsonfilteridempotent",
            "jsonpatch",
            "jsonremove",
            "jsonremoveidempotent",
        ],
    ),
    (
        "encodings, hashes",
        &[
            "base64builtins",
            "base64urlbuiltins",
            "cryptohmacequal",
            "cryptohmacsha1",
            "cryptohmacsha256",
            "cryptohmacsha512",
            "cryptosha1",
            "cryptosha256",
            "hexbuiltins",
            "urlbuiltins",
        ],
    ),
    (
        "units and numbers",
        &[
            "aggregates",
            "arithmetic",
            "bitsand",
            "bitsnegate",
            "bitsor",
            "bitsshiftleft",
            "bitsshiftright",
            "bitsxor",
            "numbersrange",
            "numbersrangestep",
            "units",
        ],
    ),
    ("time", &["time"]),
    ("semver", &["semvercompare", "semverisvalid"]),
    ("walk, graphs", &["reachable", "walkbuiltin"]),
];

/// Families that are excluded by design.
const LEFT_OUT: &[&str] = &[
    "cryptohmacmd5",
    "cryptomd5",
    "cryptoparsersaprivatekeys",
    "cryptox509parseandverifycertificates",
    "cryptox509parsecertificaterequest",
    "cryptox509parsecertificates",
    "cryptox509parsekeypair",
    "cryptox509parsersaprivatekey",
    "globsmatch",
    "graphql",
    "invalidkeyerror",
    "jsonschema",
    "jwtbuiltins",
    "jwtdecodeverify",
    "jwtencodesign",
    "jwtencodesignheadererrors",
    "jwtencodesignpayloaderrors",
    "jwtencodesignraw",
    "jwtverifyeddsa",
    "jwtverifyhs256",
    "jwtverifyhs384",
    "jwtverifyhs512",
    "jwtverifyrsa",
    "netcidrcontainsmatches",
    "netlookupipaddr",
    "providers-aws",
    "rand",
    "regometadatachain",
    "regometadatarule",
    "regoparsemodule",
    "rendertemplate",
    "uuid",
];

/// Language features that OPA added after 1.5.
const NEWER: &[&str] = &[
    "keywordrefs",
    "logic_operators",
    "rego_v2_import",
    "stringinterpolation",
    "uribuiltins",
];

/// The first family: all folders that are in no other.
pub(crate) const RULES: &str = "rules, references, comprehensions, negation, every";
/// The family of cases that are excluded by design.
pub(crate) const BY_DESIGN: &str =
    "left out by design (JWT, X.509, GraphQL, schemas, HTTP, UUID, MD5, …)";
/// The family of the newer language.
pub(crate) const NEWER_LANGUAGE: &str =
    "newer language (interpolation, `and`/`or`/`not {}`, keywords in references, `uri.*`)";

/// Returns the family of a folder.
pub(crate) fn of(folder: &str) -> &'static str {
    if LEFT_OUT.contains(&folder) {
        BY_DESIGN
    } else if NEWER.contains(&folder) {
        NEWER_LANGUAGE
    } else {
        let mut used = USED.iter();
        used.find(|(_, folders)| folders.contains(&folder))
            .map_or(RULES, |(family, _)| family)
    }
}

/// Returns the families that admission policies use, in order.
pub(crate) fn used() -> impl Iterator<Item = &'static str> {
    [RULES]
        .into_iter()
        .chain(USED.iter().map(|(family, _)| *family))
}
