//! OPA's built-ins that are not supported. A policy that calls one is rejected at load, with the
//! name of the built-in.

/// A built-in of OPA that policies cannot call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingBuiltin {
    /// The name of the built-in.
    pub name: &'static str,
    /// The reason, one clause.
    pub why: &'static str,
}

const REACHES_OUT: &str =
    "policies cannot access the network: replicate the data, or put it into a data ConfigMap";
const HOST: &str = "policies cannot inspect their process";
const RANDOM: &str = "evaluation must be deterministic";
const TOKENS: &str = "policies cannot verify tokens or certificates";
const SCHEMAS: &str = "schema validation is not implemented";
const NOT_YET: &str = "it is not implemented";

macro_rules! missing {
    ($($why:ident: $($name:literal)*;)*) => {
        &[$($(MissingBuiltin { name: $name, why: $why },)*)*]
    };
}

static MISSING: &[MissingBuiltin] = missing! {
    REACHES_OUT: "http.send" "net.lookup_ip_addr";
    HOST: "opa.runtime" "rego.metadata.chain" "rego.metadata.rule" "rego.parse_module"
        "internal.print" "internal.member_2" "internal.member_3";
    RANDOM: "rand.intn" "uuid.rfc4122";
    TOKENS: "io.jwt.decode" "io.jwt.decode_verify" "io.jwt.encode_sign" "io.jwt.encode_sign_raw"
        "io.jwt.verify_eddsa" "io.jwt.verify_es256" "io.jwt.verify_es384" "io.jwt.verify_es512"
        "io.jwt.verify_hs256" "io.jwt.verify_hs384" "io.jwt.verify_hs512"
        "io.jwt.verify_ps256" "io.jwt.verify_ps384" "io.jwt.verify_ps512"
        "io.jwt.verify_rs256" "io.jwt.verify_rs384" "io.jwt.verify_rs512"
        "crypto.parse_private_keys" "crypto.x509.parse_and_verify_certificates"
        "crypto.x509.parse_and_verify_certificates_with_options"
        "crypto.x509.parse_certificate_request" "crypto.x509.parse_certificates"
        "crypto.x509.parse_keypair" "crypto.x509.parse_rsa_private_key"
        "providers.aws.sign_req";
    SCHEMAS: "graphql.is_valid" "graphql.parse" "graphql.parse_and_verify" "graphql.parse_query"
        "graphql.parse_schema" "graphql.schema_is_valid" "json.match_schema" "json.verify_schema";
    NOT_YET: "crypto.hmac.md5" "crypto.md5" "regex.globs_match"
        "strings.render_template" "uuid.parse" "yaml.marshal";
};

/// Returns all built-ins of OPA that policies cannot call, for documentation.
pub fn missing_builtins() -> &'static [MissingBuiltin] {
    MISSING
}

/// Returns the reason why a built-in is unsupported; `None` if it is supported, or is not one of
/// OPA's.
pub(crate) fn missing(name: &str) -> Option<&'static str> {
    MISSING
        .iter()
        .find(|missing| missing.name == name)
        .map(|missing| missing.why)
}

/// Returns OPA's documented built-ins that are neither supplied nor listed as unsupported. The
/// result is empty if the lists are complete.
#[cfg(test)]
fn unaccounted() -> Vec<&'static str> {
    DOCUMENTED
        .iter()
        .copied()
        .filter(|name| super::arguments(name).is_none() && missing(name).is_none())
        .collect()
}

/// OPA's documented built-ins without its operators.
#[cfg(test)]
const DOCUMENTED: &[&str] = &[
    "abs",
    "all",
    "any",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "base64url.decode",
    "base64url.encode",
    "base64url.encode_no_pad",
    "bits.and",
    "bits.lsh",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "cast_array",
    "cast_boolean",
    "cast_null",
    "cast_object",
    "cast_set",
    "cast_string",
    "ceil",
    "concat",
    "contains",
    "count",
    "crypto.hmac.equal",
    "crypto.hmac.md5",
    "crypto.hmac.sha1",
    "crypto.hmac.sha256",
    "crypto.hmac.sha512",
    "crypto.md5",
    "crypto.parse_private_keys",
    "crypto.sha1",
    "crypto.sha256",
    "crypto.x509.parse_and_verify_certificates",
    "crypto.x509.parse_and_verify_certificates_with_options",
    "crypto.x509.parse_certificate_request",
    "crypto.x509.parse_certificates",
    "crypto.x509.parse_keypair",
    "crypto.x509.parse_rsa_private_key",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "glob.quote_meta",
    "graph.reachable",
    "graph.reachable_paths",
    "graphql.is_valid",
    "graphql.parse",
    "graphql.parse_and_verify",
    "graphql.parse_query",
    "graphql.parse_schema",
    "graphql.schema_is_valid",
    "hex.decode",
    "hex.encode",
    "http.send",
    "indexof",
    "indexof_n",
    "intersection",
    "io.jwt.decode",
    "io.jwt.decode_verify",
    "io.jwt.encode_sign",
    "io.jwt.encode_sign_raw",
    "io.jwt.verify_eddsa",
    "io.jwt.verify_es256",
    "io.jwt.verify_es384",
    "io.jwt.verify_es512",
    "io.jwt.verify_hs256",
    "io.jwt.verify_hs384",
    "io.jwt.verify_hs512",
    "io.jwt.verify_ps256",
    "io.jwt.verify_ps384",
    "io.jwt.verify_ps512",
    "io.jwt.verify_rs256",
    "io.jwt.verify_rs384",
    "io.jwt.verify_rs512",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.marshal",
    "json.marshal_with_options",
    "json.match_schema",
    "json.patch",
    "json.remove",
    "json.unmarshal",
    "json.verify_schema",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_contains_matches",
    "net.cidr_expand",
    "net.cidr_intersects",
    "net.cidr_is_valid",
    "net.cidr_merge",
    "net.cidr_overlap",
    "net.lookup_ip_addr",
    "numbers.range",
    "numbers.range_step",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "opa.runtime",
    "print",
    "product",
    "providers.aws.sign_req",
    "rand.intn",
    "re_match",
    "regex.find_all_string_submatch_n",
    "regex.find_n",
    "regex.globs_match",
    "regex.is_valid",
    "regex.match",
    "regex.replace",
    "regex.split",
    "regex.template_match",
    "rego.metadata.chain",
    "rego.metadata.rule",
    "rego.parse_module",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "set_diff",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.render_template",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.format",
    "time.now_ns",
    "time.parse_duration_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "to_number",
    "trace",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "units.parse",
    "units.parse_bytes",
    "upper",
    "urlquery.decode",
    "urlquery.decode_object",
    "urlquery.encode",
    "urlquery.encode_object",
    "uuid.parse",
    "uuid.rfc4122",
    "walk",
    "yaml.is_valid",
    "yaml.marshal",
    "yaml.unmarshal",
];

#[cfg(test)]
mod tests {
    use regorus::unstable::BUILTINS;

    use super::*;

    #[test]
    fn every_built_in_of_opa_is_there_or_said_to_be_missing() {
        assert_eq!(unaccounted(), Vec::<&str>::new());
    }

    #[test]
    fn what_is_missing_reaches_no_interpreter() {
        for missing in missing_builtins() {
            assert!(
                super::super::arguments(missing.name).is_none(),
                "{}",
                missing.name
            );
        }
        assert!(!BUILTINS.contains_key("http.send"));
        assert!(!BUILTINS.contains_key("opa.runtime"));
    }
}
