"""Whatever a client says in its headers: an answer of tus, never a failure of the server."""

from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40
)
NAMES = (
    "Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Defer-Length", "Upload-Metadata",
    "Upload-Concat", "Upload-Checksum", "Content-Type", "X-HTTP-Method-Override",
    "Idempotency-Key",
)  # fmt: skip
LIKELY = st.sampled_from(
    [
        "1.0.0", "0", "1", "5", "-1", "99999999999999999999", "partial", "final;", "PATCH", "HEAD",
        "final;/api/v1/uploads/", "final;/api/v1/uploads/" + "0" * 32, "sha1 ", "sha256 AAAA",
        "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "filename dG9tby5tcmM=", "sha256 MDAwMA==", ", ,",
        "application/offset+octet-stream", "unpack emlw", "a " + "A" * 300,
    ]
)  # fmt: skip


@settings(max_examples=150)
@given(
    method=st.sampled_from(["POST", "PATCH", "HEAD", "DELETE", "OPTIONS", "GET", "PUT"]),
    headers=st.dictionaries(st.sampled_from(NAMES), LIKELY | TEXT, max_size=7),
    target=st.sampled_from(["", "own", "0" * 32, "x"]),
    body=st.binary(max_size=8),
)
def test_no_header_makes_the_server_fail(fuzzed, method, headers, target, body):
    tus, own = fuzzed
    path = {"": "/api/v1/uploads", "own": own}.get(target, f"/api/v1/uploads/{target}")
    sent = (
        dict(tus.headers) if len(headers) % 2 else {"Authorization": tus.headers["Authorization"]}
    )
    sent |= {name: value.encode("latin-1") for name, value in headers.items()}
    answer = tus.client.request(method, path, headers=sent, content=body)
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.json()["code"]
