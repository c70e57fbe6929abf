//! Responses in the XML of the query protocol.

use aws_smithy_xml::encode::{ScopeWriter, XmlWriter};
use http::HeaderName;

use super::Refusal;
use crate::http::{Answer, answer, status};

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// An element of a response.
#[derive(Debug)]
pub(super) struct Element {
    name: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Text(String),
    Group(Vec<Element>),
}

impl Element {
    pub(super) fn text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            content: Content::Text(text.into()),
        }
    }

    pub(super) fn group(name: impl Into<String>, elements: Vec<Self>) -> Self {
        Self {
            name: name.into(),
            content: Content::Group(elements),
        }
    }

    fn write(&self, scope: &mut ScopeWriter<'_, '_>) {
        self.content.write(&mut scope.start_el(&self.name).finish());
    }
}

impl Content {
    fn write(&self, scope: &mut ScopeWriter<'_, '_>) {
        match self {
            Self::Text(text) => scope.data(text),
            Self::Group(elements) => elements.iter().for_each(|element| element.write(scope)),
        }
    }
}

/// Returns the response to `action` with its result.
pub(super) fn success(action: &str, result: Vec<Element>, request_id: &str) -> Answer {
    let content = vec![
        Element::group(format!("{action}Result"), result),
        Element::group(
            "ResponseMetadata",
            vec![Element::text("RequestId", request_id)],
        ),
    ];
    document(
        200,
        &Element::group(format!("{action}Response"), content),
        request_id,
    )
}

pub(super) fn error(refusal: &Refusal, request_id: &str) -> Answer {
    let kind = if refusal.status < 500 {
        "Sender"
    } else {
        "Receiver"
    };
    let content = vec![
        Element::group(
            "Error",
            vec![
                Element::text("Type", kind),
                Element::text("Code", &refusal.code),
                Element::text("Message", &refusal.message),
            ],
        ),
        Element::text("RequestId", request_id),
    ];
    document(
        refusal.status,
        &Element::group("ErrorResponse", content),
        request_id,
    )
}

fn document(number: u16, root: &Element, request_id: &str) -> Answer {
    let mut text = String::new();
    let mut writer = XmlWriter::new(&mut text);
    root.content.write(
        &mut writer
            .start_el(&root.name)
            .write_ns(NAMESPACE, None)
            .finish(),
    );
    let mut answer = answer(status(number), "text/xml", text);
    if let Ok(id) = request_id.parse() {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}
