"""A password in an address is used by who connects, and seen by nobody else."""

import copy
import json
import pickle
from dataclasses import dataclass, field

import pytest
import yaml

from poa_ds.system import console
from poa_ds.system.addresses import Address, without_passwords
from poa_ds.system.errors import UserError
from poa_ds.system.typed_yaml import build, dump, plain

HIDDEN = {
    "sftp://me:hunter2@host:5000/x": "sftp://host:5000/x",
    "sftp://me:hun@ter2@host/x": "sftp://host/x",
    "sftp://me:hun/ter2@host/x": "sftp://host/x",
    "sftp://me:hun#te@r2@host/x": "sftp://host/x",
    "sftp://hunter2@host": "sftp://host",
    "postgresql+psycopg2://me:hunter2@db:5432/mlflow?sslmode=require": (
        "postgresql+psycopg2://db:5432/mlflow?sslmode=require"
    ),
    "postgresql://db/mlflow?user=me&password=hunter2&x=1": (
        "postgresql://db/mlflow?user=me&password=***&x=1"
    ),
    "s3://b/x?X-Amz-Signature=hunter2": "s3://b/x?X-Amz-Signature=***",
    "sftp://h/x?sv=1&sig=hunter2&x=1": "sftp://h/x?sv=1&sig=***&x=1",
    "sftp://h/x#token=hunter2": "sftp://h/x#token=***",
    "sftp://h/x?auth=hunter2": "sftp://h/x?auth=***",
    "pipe:curl -u me:hunter2 sftp://h/x": "pipe:curl -u me:*** sftp://h/x",
    "pipe:curl --user=me:hunter2 sftp://h/x": "pipe:curl --user=me:*** sftp://h/x",
    'pipe:curl -H "Authorization: Bearer hunter2" h': (
        'pipe:curl -H "Authorization: Bearer ***" h'
    ),
    "pipe:AWS_SECRET_ACCESS_KEY=hunter2 aws x": "pipe:AWS_SECRET_ACCESS_KEY=*** aws x",
    "pipe:wget --password=hunter2 h": "pipe:wget --password=*** h",
    "pipe:curl sftp://me:hunter2@host/{0..9}.tar": "pipe:curl sftp://host/{0..9}.tar",
}
AS_IT_IS = [
    *("", "data/train", "http://localhost:5000/a@b", "sqlite:////x/mlflow.db", "me@host"),
    *("pipe:curl -u me:$PASSWORD h", 'pipe:curl -H "Authorization: Bearer $TOKEN" h'),
    *("pipe:TOKEN=$(cat t) get", "sftp://h/?design=3"),
    *("s3://bucket/a=b", "sftp://host/x?key_frame", "the key=3 of"),
]


@pytest.mark.parametrize(("whole", "seen"), HIDDEN.items())
def test_a_password_is_taken_out_of_any_text(whole: str, seen: str) -> None:
    assert without_passwords(f"GET '{whole}' failed") == f"GET '{seen}' failed"
    assert (Address(whole), Address(whole).whole) == (seen, whole)
    assert Address(whole).has_password


@pytest.mark.parametrize("text", AS_IT_IS)
def test_other_texts_stay(text: str) -> None:
    assert without_passwords(text) == text == Address(text) and not Address(text).has_password


@dataclass(frozen=True)
class Section:
    uri: Address = field(default_factory=Address)


def test_whatever_is_made_of_it_has_no_password_and_copies_still_connect() -> None:
    address = Address("sftp://me:hunter2@host")
    section = build(Section(), {"uri": address.whole})
    made = [f"{address}", f"{address!r}", repr(section), dump(section), str(plain(section))]
    made += [json.dumps(plain(section)), yaml.safe_dump(plain(section)), json.dumps([address])]
    assert not [text for text in made if "hunter2" in text]
    copies = [pickle.loads(pickle.dumps(address)), copy.deepcopy(address), section.uri]
    assert {one.whole for one in (*copies, Address(address))} == {address.whole}


def test_what_is_said_has_no_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("sftp://me:hunter2@host/1 and sftp://me:hunter2@host/2 failed")
    console.tell("\x1b[2J sftp://me:hunter2@host/3")
    told = "".join(capsys.readouterr())
    assert "hunter2" not in told and told.count("sftp://host/") == 3 and "\x1b" not in told
    with pytest.raises(UserError) as error:
        build(Section(), {"uri": ["sftp://me:" + 200 * "hunter2" + "@host"]})
    assert "hunter2" not in str(error.value)
    assert str(UserError("sftp://me:hunter2@host: no")) == "sftp://host: no"
