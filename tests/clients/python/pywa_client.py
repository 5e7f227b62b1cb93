"""pywa. It has no option for the base URL; the application's own httpx client, which it uses, has one."""

import httpx
from pywa import WhatsApp
from pywa.errors import WhatsAppError
from pywa.types import Section, SectionList, SectionRow
from pywa.types.others import Pagination
from pywa.types.templates import TemplateLanguage

from campaign import NUMBER, WORLD, Campaign


class Pywa:
    lacks = {}

    def __init__(self, number, timeout):
        session = httpx.Client() if timeout is None else httpx.Client(timeout=timeout)
        self.wa = WhatsApp(phone_id=number, token=WORLD["token"], waba_id=WORLD["waba_id"], session=session)
        session.base_url = f"{WORLD['api']}/v23.0"

    def text(self, to, body):
        return self.wa.send_message(to, body).id

    def reply(self, to, body, wamid):
        return self.wa.send_message(to, body, reply_to_message_id=wamid, tracker="my own data").id

    def react(self, to, wamid, emoji):
        return self.wa.send_reaction(to, emoji, wamid).id

    def template(self, to, name):
        return self.wa.send_template(to, name, TemplateLanguage.ENGLISH_US, []).id

    def choices(self, to):
        rows = [SectionRow(title="One", callback_data="1"), SectionRow(title="Two", callback_data="2")]
        return self.wa.send_message(to, "Which one?", buttons=SectionList("Open", [Section("All", rows)])).id

    def image_link(self, to, link):
        return self.wa.send_image(to, link, caption="From a link").id

    def upload(self, file):
        return self.wa.upload_media(file.read_bytes(), mime_type="image/png", filename="picture.png", ttl=120).id

    def image_id(self, to, medium):
        return self.wa.send_image(to, medium).id

    def download(self, medium, folder):
        return self.wa.get_media_bytes(self.wa.get_media_url(medium).url)

    def read(self, wamid):
        assert self.wa.mark_message_as_read(wamid)

    def typing(self, wamid):
        assert self.wa.indicate_typing(wamid)

    def pages(self):
        # By cursors: the `next()` of its list of templates fails in pywa itself. Another list's is used below.
        names, after = [], None
        while True:
            page = self.wa.get_templates(pagination=Pagination(limit=1, after=after))
            names += [template.name for template in page]
            if not page.has_next:
                return names
            after = page.after

    def others(self):
        self.wa.get_business_account()
        self.wa.get_business_phone_number()
        page, numbers = self.wa.get_business_phone_numbers(pagination=Pagination(limit=1)), []
        while page:
            numbers += [number.id for number in page]
            page = page.next() if page.has_next else None
        assert len(set(numbers)) == 3, numbers
        self.wa.get_business_profile()
        self.wa.get_commerce_settings()
        self.wa.get_blocked_users()
        self.wa.get_qr_codes()
        self.wa.get_flows()

    def refusal(self, error):
        return (error.code, error.status_code) if isinstance(error, WhatsAppError) else (None, None)


Campaign(Pywa).run()
