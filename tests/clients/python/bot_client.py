"""python-whatsapp-bot. It has no option for the base URL, but public attributes; it returns the response of requests."""

import requests
from python_whatsapp_bot import Inline_list, List_item, Whatsapp

from campaign import WORLD, Campaign, Refused


class Bot:
    lacks = {
        "reaction": "python-whatsapp-bot has no reactions",
        "upload, send by id": "its upload_media sends no file, and its images are links",
        "typing": "its mark_as_read is always one with a typing indicator",
        "pages to the end": "python-whatsapp-bot has no lists",
        "other reads": "python-whatsapp-bot has no other calls",
        "client gives up, asks again": "its time-out is a constant of 30 s",
    }

    def __init__(self, number, timeout):
        self.bot = Whatsapp(number, WORLD["token"])
        self.bot.base_url = f"{WORLD['api']}/v21.0"
        self.bot.msg_url = f"{self.bot.base_url}/{number}/messages"

    @staticmethod
    def sent(response):
        try:
            answer = response.json()
        except requests.JSONDecodeError:
            raise Refused(None, response.status_code) from None
        if "error" in answer:
            raise Refused(answer["error"]["code"], response.status_code)
        return answer["messages"][0]["id"]

    def text(self, to, body):
        return self.sent(self.bot.send_message(to, body))

    def reply(self, to, body, wamid):
        return self.sent(self.bot.reply_message(to, body, msg_id=wamid))

    def template(self, to, name):
        return self.sent(self.bot.send_template_message(to, name, language_code="en_US"))

    def choices(self, to):
        markup = Inline_list("Open", [List_item("One", _id="1"), List_item("Two", _id="2")])
        return self.sent(self.bot.send_message(to, "Which one?", reply_markup=markup))

    def image_link(self, to, link):
        return self.sent(self.bot.send_media_message(to, link, caption="From a link"))

    def download(self, medium, folder):
        return self.bot.download_media(medium, str(folder)).read_bytes()

    def read(self, wamid):
        assert self.bot.mark_as_read({"id": wamid}).json() == {"success": True}

    def refusal(self, error):
        return (error.code, error.status) if isinstance(error, Refused) else (None, None)


Campaign(Bot).run()
