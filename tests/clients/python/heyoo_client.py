"""heyoo. It has no option for the base URL, but public attributes; it has no exceptions, but returns the error's body."""

from heyoo import WhatsApp

from campaign import WORLD, Campaign, Refused


class Heyoo:
    lacks = {
        "typing": "heyoo has no typing indicator",
        "pages to the end": "heyoo has no lists",
        "other reads": "heyoo has no other calls",
        "client gives up, asks again": "heyoo has no time-out",
    }

    def __init__(self, number, timeout):
        self.wa = WhatsApp(WORLD["token"], phone_number_id=number)
        self.wa.base_url = self.wa.v15_base_url = f"{WORLD['api']}/v15.0"
        self.wa.url = f"{self.wa.base_url}/{number}/messages"

    @staticmethod
    def sent(call):
        answer = call()
        if "error" in answer:
            raise Refused(answer["error"]["code"])
        return answer["messages"][0]["id"]

    def text(self, to, body):
        return self.sent(lambda: self.wa.send_message(body, to))

    def reply(self, to, body, wamid):
        return self.sent(lambda: self.wa.reply_to_message(wamid, to, body))

    def react(self, to, wamid, emoji):
        return self.sent(lambda: self.wa.send_reaction(emoji, wamid, to))

    def template(self, to, name):
        return self.sent(lambda: self.wa.send_template(name, to, components=[], lang="en_US"))

    def choices(self, to):
        buttons = [{"type": "reply", "reply": {"id": str(n), "title": f"Choice {n}"}} for n in (1, 2)]
        button = {"type": "button", "body": {"text": "Which one?"}, "action": {"buttons": buttons}}
        return self.sent(lambda: self.wa.send_reply_button(button, to))

    def image_link(self, to, link):
        return self.sent(lambda: self.wa.send_image(link, to))

    def upload(self, file):
        return self.wa.upload_media(str(file))["id"]

    def image_id(self, to, medium):
        return self.sent(lambda: self.wa.send_image(medium, to, link=False))

    def download(self, medium, folder):
        name = self.wa.download_media(self.wa.query_media_url(medium), "image/png", str(folder / "heyoo"))
        with open(name, "rb") as file:
            return file.read()

    def read(self, wamid):
        assert self.wa.mark_as_read(wamid) == {"success": True}

    def refusal(self, error):
        return (error.code, error.status) if isinstance(error, Refused) else (None, None)


Campaign(Heyoo).run()
