"""A wide grammar: twelve topics whose slots hold slots, so that no sentence comes twice by chance.

Every sentence names some of a person, a place, a time or a figure; `Grammar.repeat_chance` tells how often two
sentences agree. Plain ASCII English, numbers as words, because synthesisers and aligners read both alike.
"""

from __future__ import annotations

from streamavatar.synth.scripts import BACKCHANNELS, Grammar, Topic


def _of(text: str) -> tuple[str, ...]:
    """Options parted by bars; line ends are spaces."""
    return tuple(" ".join(option.split()) for option in text.split("|"))


SLOTS: dict[str, tuple[str, ...]] = {
    # names and people
    "first": _of("""
        Anna | Brian | Carla | Daniel | Emma | Frank | Grace | Henry | Isabel | Jack | Karen | Leo | Maria | Nathan |
        Olivia | Peter | Rachel | Samuel | Tina | Victor | Wendy | Adam | Bella | Chris | Diana | Eric | Fiona | George
        | Hannah | Ian | Julia | Kevin | Laura | Martin | Nora | Oscar | Paula | Robert | Sarah | Thomas | Ursula |
        Vincent | William | Alice | Benjamin | Claire | David | Eva | Felix | Gloria | Hugo | Irene | Jacob | Kate |
        Louis | Megan | Nicholas | Pamela | Ruth | Simon"""),
    "last": _of("""
        Baker | Carter | Dawson | Ellis | Fisher | Graham | Harris | Irving | Jensen | Keller | Lambert | Mason | Newman
        | Owens | Palmer | Quinn | Russell | Spencer | Turner | Vaughn | Walker | Young | Bishop | Chapman | Douglas |
        Fletcher | Gibson | Howard | Marshall | Porter | Sawyer | Thornton | Watson | Burke"""),
    "relation": _of("""
        sister | brother | mother | father | cousin | uncle | aunt | neighbor | boss | teacher | doctor | roommate |
        best friend | coach | landlord | dentist | grandmother | grandfather | daughter | son"""),
    "person": _of("""
        my {relation} | my {title} {first} | {first} | {first} {last} | our {relation} | {first} from {city} | your
        {relation}"""),
    "title": _of("neighbor | boss | teacher | doctor | roommate | best friend | coach | landlord | dentist | cousin"),
    # where and when
    "city": _of("""
        London | Paris | Boston | Chicago | Denver | Madrid | Berlin | Dublin | Vienna | Toronto | Seattle | Austin |
        Rome | Milan | Lisbon | Oslo | Stockholm | Prague | Athens | Cairo | Sydney | Melbourne | Tokyo | Delhi |
        Boulder | Portland | Memphis | Dallas | Geneva | Zurich | Brussels | Hamburg | Munich | Glasgow | Bristol |
        Manchester | Montreal | Vancouver | Havana | Lima"""),
    "place": _of("""
        the market | the beach | the museum | the library | the harbor | the theater | the station | the hospital | the
        office | the bakery | the swimming pool | the old bridge | the town hall | the stadium | the botanical garden |
        the corner shop | the ferry | the gallery | the university | the bus stop | the castle | the playground | the
        farm | the parking lot | the bank | the post office | the gym"""),
    "weekday": _of("Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday"),
    "daypart": _of("morning | afternoon | evening | night"),
    "month": _of("""
        January | February | March | April | May | June | July | August | September | October | November | December"""),
    "hour": _of("one | two | three | four | five | six | seven | eight | nine | ten | eleven | noon"),
    "clock": _of("""
        {hour} | half past {hour} | a quarter to {hour} | a quarter past {hour} | ten past {hour} | twenty to {hour} |
        five past {hour} | ten to {hour}"""),
    "ones": _of("one | two | three | four | five | six | seven | eight | nine"),
    "tens": _of("twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety"),
    "count": _of("two | three | four | five | six | seven | eight | nine | ten | twelve | fifteen | twenty"),
    "figure": _of("{tens} {ones} | {tens} | {ones} hundred | {ones} hundred and {tens} | {ones} hundred {tens} {ones}"),
    "date": _of("the {nth} of {month} | {month} the {nth} | the last day of {month}"),
    "nth": _of("""
        first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth | eleventh | twelfth |
        fifteenth | twentieth"""),
    "past": _of("""
        last {weekday} {daypart} | on {weekday} around {clock} | back in {month} | {count} weeks ago | {count} days
        before {first} left | on the birthday of {first} | the {daypart} after the storm | around {clock} yesterday |
        one {weekday} in {month}"""),
    "future": _of("""
        next {weekday} {daypart} | on {weekday} at {clock} | at {clock} tomorrow | in {count} weeks | on the {nth} of
        {month} | before {first} gets back | as soon as {first} calls | some time in {month} | after work on
        {weekday}"""),
    "company": _of("""
        with {person} | together with {first} and {first} | without {person} | on my own | with {count} people from
        {city} | thanks to {person} | next to {person}"""),
    # attitudes
    "open": _of("""
        Well, | You know, | Honestly, | Actually, | To be fair, | Yes, and | Let me see, | Funny enough, | If I remember
        right, | To tell you the truth, | Believe it or not, | As it happens, | Look, | Okay, so | By the way, | I have
        to say, | Between you and me, | In the end,"""),
    "good": _of("""
        wonderful | really lovely | quite fun | amazing | very peaceful | brilliant | a great surprise | pretty good |
        so beautiful | worth every minute | cheaper than expected | a real pleasure | very clever | much easier this
        time | exactly what we needed"""),
    "bad": _of("""
        a bit boring | harder than it looks | too expensive | rather slow | very tiring | a complete mess | far too long
        | quite confusing | noisy | a waste of time | a little scary | terribly crowded | not great | more trouble than
        it was worth"""),
    "judged": _of("{good} | {bad} | {good}, if a little late | {bad}, but useful | {bad} at first and then {good}"),
    "mood": _of("""
        happy | tired but happy | a little nervous | proud | very calm | hungry | relaxed | amused | jealous | impatient
        | grateful | a bit lonely | curious | relieved"""),
    "aside": _of("""
        as {person} told me {past} | so please tell {person} {future} | and {person} feels {mood} about it | at least
        {person} in {city} thinks so | which {person} calls {judged} | but ask {person} at {place} first"""),
    "doubt": _of("""
        or should I ask {person} {future} | and does {person} know about it | or was that {person} {past} | because
        {person} asked me {past} | just like {person} in {city} | or did {first} get it wrong"""),
    # things
    "color": _of("blue | red | green | yellow | white | black | brown | purple | grey | orange | silver | pink"),
    "thing": _of("""
        {color} bicycle | {color} umbrella | {color} jacket | {color} lamp | wooden table | silver watch | leather bag |
        pair of {color} boots | camera | guitar | suitcase | garden chair | box of {color} candles | bookshelf |
        telescope | map of {city} | kettle | picture of {city} | {color} blanket | violin"""),
    "dish": _of("""
        mushroom soup | fresh pasta | spicy beans | grilled fish | apple pie | rice pudding | lentil stew | roast
        potatoes | a cheese omelet | garlic bread | chicken curry | pumpkin bread | tomato salad | plum cake | vegetable
        dumplings | pepper steak | lemon cookies | a bowl of noodles | cherry jam | warm pretzels"""),
    "spice": _of("""
        ginger | black pepper | olive oil | fresh basil | cinnamon | chili | honey | butter | lime juice | onions | sea
        salt | vinegar | rosemary | sour cream"""),
    "ride": _of("""
        the night train | the early bus | a small boat | the ferry | a rented car | my old bicycle | the slow train | a
        taxi | the cable car | the first flight"""),
    "task": _of("""
        budget | report | new website | job advert | warehouse plan | training video | contract | survey | price list |
        summer campaign | presentation | test results | staff party | phone system"""),
    "sky": _of("sunny | rainy | foggy | windy | cloudy | stormy | freezing | humid | mild | snowy | bright | damp"),
    "body": _of("knee | back | shoulder | ankle | neck | wrist | elbow | tooth | hip | thumb | left ear | right eye"),
    "cure": _of("""
        more sleep | a warm bath | long walks | hot tea | less coffee | a week of rest | cold packs | stretching | fresh
        air | swimming | a lighter breakfast | new glasses"""),
    "gadget": _of("""
        printer | phone | laptop | router | washing machine | camera | heating | headset | coffee machine | oven | car
        key | doorbell | television | tablet"""),
    "fault": _of("""
        keeps beeping | will not start | stopped after the update | shows error {figure} | gets very hot | makes a
        strange noise | lost all its settings | turns itself off | blinks {color} | asks for a password"""),
    "hobby": _of("""
        painting | playing the piano | running | baking | growing vegetables | reading novels | swimming | photography |
        climbing | sailing | dancing | building furniture | chess | pottery | bird watching | singing | learning Spanish
        | repairing clocks | riding horses | writing poems"""),
    "skill": _of("""
        managing a team | speaking to customers | writing reports | solving problems | planning budgets | teaching
        beginners | fixing machines | working under pressure | drawing plans | selling things | reading contracts |
        testing software"""),
    "job": _of("""
        nurse | driver | designer | cook | gardener | lawyer | journalist | engineer | librarian | pilot | waiter |
        musician | carpenter | translator | chemist | manager"""),
    "pet": _of("""
        puppy | cat | parrot | white horse | rabbit | goldfish | turtle | pony | family of ducks | hamster | {color}
        kitten | very old dog"""),
    "film": _of("""
        a film about a {job} | a book about {city} | a song called {color} {weekday} | a play about a {pet} | a story by
        {first} {last} | a podcast about {hobby} | a series about a {job} from {city}"""),
    "street": _of("{last} Street | {last} Road | {last} Avenue | {color} Lane | {first} Square | {last} Park"),
}  # fmt: skip

TOPICS = (
    Topic("travel", _of("""
        How was {ride} to {city} {past}, {doubt}? | Did you go to {city} {company} {past}, {doubt}? | When does {ride}
        leave for {city} on {weekday}, is it {clock}, {doubt}? | Would you rather see {city} or {place} in {city}
        {future}? | Who told you about {place} in {city}, was it {person}, {doubt}?"""), _of("""
        {open} we took {ride} from {city} to {city}, and it was {judged}. | {open} I reached {city} around {clock}
        {company}, and {place} was {judged}. | {open} {person} missed {ride} {past}, so we stayed near {place} in
        {city}. | {open} the trip to {city} took {figure} minutes and was {judged}."""), _of("""
        I am taking {ride} to {city} {future}, {aside}. | We lost a {thing} near {place} in {city} {past}. | {person}
        wants to see {place} in {city} {future}. | The room in {city} costs {figure} a night in {month}, {aside}."""),
    ),
    Topic("food", _of("""
        Have you tried {dish} with {spice} at {place} in {city}, {doubt}? | Could you bring {dish} for {count} people
        {future}, {doubt}? | Did {person} really put {spice} in {dish} {past}? | Shall we cook {dish} with {spice}
        {future}, {doubt}?"""), _of("""
        {open} {person} made {dish} with {spice} {past}, and it was {judged}. | {open} I had {dish} {company}, and the
        {spice} made it {judged}. | {open} you need {figure} grams of {spice} for {dish}, at least that is what {person}
        says. | {open} the {dish} at {place} in {city} is {judged}."""), _of("""
        I would like {dish} with {spice} and a table for {count} {future}. | {person} never eats {dish} without {spice}
        in {month}. | We ran out of {spice} {past}, so there was only {dish}, {aside}. | The recipe for {dish} came from
        {person} in {city}, {aside}."""),
    ),
    Topic("work", _of("""
        Did {person} finish the {task} {past}? | Who is going to present the {task} {future}, {person}? | Can we move
        the meeting about the {task} to {weekday} at {clock}, {doubt}? | How many pages of the {task} did you send to
        {person}, {figure}, {doubt}?"""), _of("""
        {open} the {task} was due {past}, but {person} called it {judged}. | {open} I worked on the {task} {company}
        until {clock}, which was {judged}. | {open} {person} changed {figure} lines of the {task} {past}. | {open} our
        office in {city} took over the {task} from {person}."""), _of("""
        Please send the {task} to {person} {future}. | We need {figure} more copies of the {task} by {date}, {aside}. |
        The meeting about the {task} begins at {clock} on {weekday} in {city}, {aside}. | {person} is on holiday until
        {date}, so ask {first} about the {task}."""),
    ),
    Topic("weather", _of("""
        Was it {sky} in {city} {past}, {doubt}? | Will it be {sky} or {sky} in {city} {future}? | Did {person} get wet
        at {place} {past}? | How {sky} does it get in {city} in {month}, {first}, {doubt}?"""), _of("""
        {open} it was {sky} in {city} {past}, so we waited at {place}. | {open} the wind took a {thing} from {place}
        {past}, and {person} felt {mood}. | {open} it gets {sky} around {clock}, and {person} says {weekday} will be
        {sky}. | {open} I prefer {month} in {city}, when it is {sky} and I feel {mood}."""), _of("""
        Take a {thing} along, because {city} will be {sky} {future}. | It rained for {figure} minutes at {place} {past},
        {aside}. | {person} drove through {city} while it was {sky} {past}. | The sky over {place} looked {color} around
        {clock} on {weekday}, {aside}."""),
    ),
    Topic("health", _of("""
        How was your {body} {past}, does {cure} help, {doubt}? | Did {person} see the doctor about that {body} {past}? |
        Have you tried {cure} for your {body}, like {person}, {doubt}? | Could I have an appointment for my {body}
        {future}, {doubt}?"""), _of("""
        {open} my {body} started to hurt {past}, and {cure} was {judged}. | {open} the doctor in {city} said {cure} is
        good for a sore {body}, and I felt {mood}. | {open} {person} slept {count} hours {past} and feels {mood} now. |
        {open} I hurt my {body} at {place} {past}, but {person} helped me."""), _of("""
        The doctor can see {person} at {clock} {weekday}, {aside}. | I take {count} drops before {clock}, as {person}
        told me, {aside}. | {cure} helped {person} more than {cure} in {month}. | My {body} felt better
        {past}, {aside}."""),
    ),
    Topic("shopping", _of("""
        How much is the {thing} from {city}, about {figure}, {doubt}? | Where did you buy that {thing} {past}, {doubt}?
        | Do you have this {thing} in {color} for {person}, {doubt}? | Can I bring back the {thing} that I bought
        {past}, {doubt}?"""), _of("""
        {open} {person} paid {figure} for a {thing} at {place}, and it is {judged}. | {open} the {thing} was reduced to
        {figure} {past}, so I took it for {person}. | {open} I ordered a {thing} from {city} {past}, and I feel {mood}.
        | {open} we only have the {thing} in {color}, but {person} gets more {future}."""), _of("""
        I am looking for a {thing} for {person}, not over {figure}. | The shop on {street} sells a {thing} for {figure}.
        | Your {thing} arrives {future}, {aside}. | {person} forgot a {thing} at {place} {past}."""),
    ),
    Topic("support", _of("""
        My {gadget} {fault} after what {first} did {past}, what should I do? | Is your {gadget} number {figure}
        {figure}, {doubt}? | Did the {gadget} work before {person} moved it {past}? | May I call you back about the
        {gadget} {future}, {doubt}?"""), _of("""
        {open} the {gadget} {fault}, and {person} could not repair it {past}. | {open} I restarted the {gadget} {count}
        times {past}, but it still {fault}. | {open} my name is {first} {last}, and my {gadget} {fault}. | {open}
        someone from {city} looked at the {gadget} {past}, and it was {judged}."""), _of("""
        Your order number is {figure}, {figure}, {ones}, {aside}. | A technician called {first} {last} will come
        {future}, {aside}. | Please hold the {color} button for {count} seconds until the {gadget} says {figure},
        {aside}. | The address is {figure} {street}, near {place}, {aside}."""),
    ),
    Topic("interview", _of("""
        What did you learn from {skill} at {place} in {city}, {doubt}? | Why did you leave your work as a {job} in
        {city} {past}, {doubt}? | Could you start as a {job} {future}, {doubt}? | How do you feel about {skill} and
        {skill} in {city}, {doubt}?"""), _of("""
        {open} I worked as a {job} in {city} for {count} years, and {skill} was {judged}. | {open} {person} taught me
        {skill} {past}, which made me feel {mood}. | {open} as a {job} I spent {figure} hours on {skill} {company}. |
        {open} {skill} in {city} was {judged}, so I became a {job}."""), _of("""
        We are looking for a {job} in {city} who enjoys {skill}, {aside}. | My strength is {skill}, ask {person} in
        {city}, {aside}. | The {job} before you, {first} {last}, left {past}. | {person} will talk to you about {skill}
        {future}."""),
    ),
    Topic("hobbies", _of("""
        Do you still enjoy {hobby} {company}, {doubt}? | Who taught you {hobby}, was it {person} in {city}, {doubt}? |
        Would {person} like to try {hobby} {future}? | Have you heard {film}, {first}, {doubt}?"""), _of("""
        {open} I started {hobby} {past}, and it was {judged}. | {open} {hobby} makes {person} feel {mood}, especially in
        {month}. | {open} we watched {film} {company}, and it was {judged}. | {open} {person} gave up {hobby} for
        {hobby} {past}."""), _of("""
        There is a class in {hobby} at {place} {future}, {aside}. | {person} won a {thing} for {hobby} {past}. | I
        recommend {film} to {person}, {aside}. | We practice {hobby} on {weekday} until {clock} {company}."""),
    ),
    Topic("family", _of("""
        When is {person} coming to {city}, {future}? | Did {person} like the {thing} from {city}, {doubt}? | How old is
        the {pet} that {person} found {past}? | Has {first} told {person} about the {pet} in {city}?"""), _of("""
        {open} {person} found a {pet} near {place} {past}, and we felt {mood}. | {open} {person} moved from {city} to
        {city} {past}. | {open} we all met at {place} {past}, and {person} brought {dish}. | {open} the {pet} hid behind
        a {thing} until {clock} {past}."""), _of("""
        {first} and {first} are getting married in {city} {future}. | {person} named the {pet} {first} {past}. | Please
        tell {person} that the {pet} is at {place} in {city}. | {person} gave {first} a {thing} {past}."""),
    ),
    Topic("home", _of("""
        What did you pay for the flat on {street}, {figure}, {doubt}? | Is the {gadget} on {street} still broken,
        {first}, {doubt}? | Can {person} help us paint the kitchen {color} {future}? | Who lives at {figure} {street}
        now, {doubt}?"""), _of("""
        {open} we painted the hall {color} {past}, and {person} calls it {judged}. | {open} the flat on {street} was
        {judged}, so we took the one near {place}. | {open} {person} left a {thing} in the garden {past}, and now it is
        {color}. | {open} the {gadget} upstairs {fault}, and {person} feels {mood}."""), _of("""
        The house at {figure} {street} has {count} rooms, {aside}. | We are moving to {street} {future}, {aside}. |
        {person} put the {thing} beside the {gadget} {past}. | The rent on {street} went up by {figure} in {month},
        {aside}."""),
    ),
    Topic("numbers", _of("""
        Is it {figure} or {figure} people from {city}, {doubt}? | Did you say {clock} on {date}, {first}? | Could you
        repeat the number, was it {figure} {figure}, {doubt}? | What is {figure} plus {figure}, {doubt}?"""), _of("""
        {open} it was {figure} in {city} and {figure} in {city}, so {person} felt {mood}. | {open} the code is {ones}
        {ones} {figure} {ones}, and it changes on {date}. | {open} {person} counted {figure} people at {place} {past}. |
        {open} we meet on {date} at {clock}, close to {place}."""), _of("""
        My number is {ones} {ones} {ones}, {ones} {ones} {ones}, {figure}. | Platform {count}, {clock}, train {figure},
        {aside}. | {person} was born on {date} in {city}. | That makes {figure} for {count} tickets to {city},
        {first}."""),
    ),
)  # fmt: skip

REACTIONS = _of("""
        That sounds {good}, just like {place} in {city} {past}. | I would feel {mood} too, and so would {person} in
        {city}, {aside}. | Oh, {first} told me the same thing {past}, {aside}. | Maybe we should go to {place} in {city}
        together {future}, {aside}. | I had no idea that {person} likes {hobby} so much, {aside}. | That must have been
        {bad} for {person} {past}. | It reminds me of {city} {past}, that was {judged}. | Thank you, I will tell
        {person} about it {future}, {aside}. | No, I think it was {person} who said that {past}, {aside}. | Good for
        you, {first}, I feel {mood} just hearing it {past}, {aside}. | Really, on {weekday} at {clock}, {company},
        {aside}?""")

WIDE = Grammar(SLOTS, TOPICS, REACTIONS, (*BACKCHANNELS, "mm", "yes", "exactly", "good", "oh no", "go on", "I know"))
