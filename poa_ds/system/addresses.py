"""Addresses that may hold a password: it is used, and neither shown nor kept nor sent on."""

import re

# user:password@, also where the password has a slash that should have been written %2F
_USER = re.compile(r"(?<=://)(?:[^/?#\s]*@|[^/?#\s:@]*:(?!\d+(?:[/?#\s]|$))\S*@)")
_NAMES = r"password|passwd|pwd|token|secret|signature|credential|key"
_PARAMETER = re.compile(
    rf"([?&;#](?:[\w-]*(?:{_NAMES})[\w-]*|sig|auth|pass|jwt)=)[^&;\s'\"]+", re.IGNORECASE
)
# in commands, unless a variable of the shell has the value: curl -u me:..., --password=..., a
# header, SECRET=...
_IN_COMMAND = re.compile(
    r"((?<=\s)(?:-u|--(?:proxy-)?user)[ =]?['\"]?[^\s:'\"]+:"
    r"|\b(?:Authorization|X-[\w-]*(?:Token|Key)):\s*(?:(?:Basic|Bearer)\s+)?"
    r"|(?<=\s)--[\w-]*(?:password|token|secret)[ =]"
    r"|\b\w*(?:PASSWORD|SECRET|TOKEN|ACCESS_KEY)\w*=)(?![$*]|(?:Basic|Bearer)\s)[^\s'\"]+"
)


def without_passwords(text: str) -> str:
    """The text with what stands before the @ of addresses, and secret parameters, taken out.

    Of a whole text: one that was cut inside of an address keeps a part of the password.
    """
    return _IN_COMMAND.sub(r"\1***", _PARAMETER.sub(r"\1***", _USER.sub("", text)))


class Address(str):
    """The address without its password; `whole` is what was given, for whoever connects."""

    whole: str

    def __new__(cls, text: str = "") -> "Address":
        whole = text.whole if isinstance(text, Address) else text
        address = super().__new__(cls, without_passwords(whole))
        address.whole = whole
        return address

    def __getnewargs__(self) -> tuple[str]:
        return (self.whole,)

    @property
    def has_password(self) -> bool:
        """Whether `whole` says more than may be shown."""
        return self.whole != str(self)
